"""The promise about pickles: they name public things alone, and those that were written once are read for ever."""

import base64
import copy
import pickle
import pickletools
from typing import Any

import numpy as np
import pytest

from dropfast import Dropout, Mask

X = np.ones((3, 4), np.float32)


def layer(rate: float, draw: int, *, training: bool = True, called: bool = True, **sharing: Any) -> Dropout:
    made = Dropout(rate, **sharing)
    made.load_state_dict({"key": 11530976094092348043, "draw": draw})
    if called:
        made(X)
    made.training = training
    return made


# As dropfast 0.1 wrote them, with protocol 2. Whatever becomes of the inside, these bytes do not change.
WRITTEN: dict[str, tuple[Any, str]] = {
    "Mask": (
        Mask((4, 5), 0.1, key=2**64 - 1, draw=2**32 - 1),
        "fC6J?b#7yHZ*OdK3UFa^bZKF13UL5qWO8qCW?^%53Qb{iYYK4zg>eE>aRVr50ZRl+1%`11M?bllnVFfHnuc)&eQ^dTSOWk60BdD="
        "aR-VC|NsC0|NsC009XV7003liVRvx|iUt4w|Nj733jhEBb7*05Wn^Drcx7{O2`P0>ba4t|DN=C@E&",
    ),
    "Mask-shared": (
        Mask((4, 5), 1 / 3, key=1, shared_axes=(0, 1)),
        "fC6J?b#7yHZ*OdK3UFa^bZKF13UL5qWO8qCW?^%53Qb{iYYK4zg>eE>aRVr50ZRl+1%`11M?ck7RaI40Rfcf|eQ^dTSOWk60BdD="
        "aR*BQSOfq70AzAucX0?y09XqE0047nVRB_;UtxG<b8!hv080UeaSC-#ba4w}DN=C^E&",
    ),
    "Mask-window": (
        Mask((400, 50), 0.5, key=1, shared_axes=0).window((2, 3), (4, 5)),
        "fC6K0aAk5~bZ>GBZDn+5Z)9U(Y;0w63UL5f1^@s6cWG{9Z+CG4O9D#+hH(N*1WN^maRY~O1X6JYV`g=3V{~tCY;y{5VRCe7VQdO<"
        "24iG$Z*XQ|b94$#VRLH=aR-HQ2vTtgC};;wkO50FhH(l<Ki~iW00000hH(phaSSL}0{{R3Yh`(H4NC!71ONa4WO8A5aSlrWSPK9E"
        "0CQ+za%E&+VR&V8aSuxXg>evdPIPe*VkuH_5`}RSQgIY6",
    ),
    "Dropout": (
        layer(0.1, 7),
        "fC6J=a&K^EVRLi}L~?I%Z*_DEaR4cSaRGgC0w`Dn0001TVRU7214lo(nVFfHnVMJ&0001UXkl_?WM5%;Wpi-^DOd{t003@pX>(;?"
        "b7*03WpM>gSO@?B0CaL;X>Mt5XK@CISOfq70BvD&YjFo-W_503bZ>8La|&=_a&&27YzlD*V`Oq~aAsk1bP7#jb88B5359VAQgI6?"
        "XbDRLO9X~-3`ak?nVFfHnVN=i4SjJAC|Cmk003)cd2tVl35!bQ@u@)upa56|0001Fa$$FI5K9MW1Sxe+ba4@4DN=C~Xb*}Bi%RA3"
        "sX+#y0B8_P2z6pE",
    ),
    "Dropout-shared": (
        layer(0.25, 0, shared_axes=-1),
        "fC6J=a&K^EVRLi}L~?I%Z*_DEaR4cSaRGgC0w`Dn0001TVRU7214lp500000003AE0001UXkl_?WM5%;Wpi-^O8@`=|Alb{SPK9E"
        "0B&z-b7fz1Xkl<=aRyFU2mk;8baG*7ZfS03aR-Q41ONa4ZDDh3aR_5(b#7yHZ*OdK3UFa^bZKF13ULWzWO8qCW?^%53Qb{iYYK4+"
        "g>ef~aSSME3QGe^1cq@9M?cU2000000ETf6eQ^&cSOWk60BdD=aS)0Li%RA3sX+#y09XV7003liVRvy6O8{sDO96#(5_L{=aT8)G"
        "QgIY$5Q+(lO6BpXK?a}zXc0>Rbz&|",
    ),
    "Dropout-noise_shape": (
        layer(0.25, 2**32 - 1, noise_shape=(None, 1)),
        "fC6J=a&K^EVRLi}L~?I%Z*_DEaR4cSaRGgC0w`Dn0001TVRU7214lp500000003AE0001UXkl_?WM5%;Wpi-^DOd{t003@pX>(;?"
        "b7*03WpM>gO96&)23QCH004AyVQFq@Zf9`^h*$&w003=ab8B%3V`g=3V{~tCY;y{5VRCe7VQdO<31eh(Z*XQ|b94$#VRLH=aSDZT"
        "3sP|mC};{x14{&kaSca5&;S4c0001naSnZP4=7jz0001MWqENBiV2HK<?*RO2A}{~1ONa4WO8A5aS@6I|NsC00B8hD0fliAbxw3~"
        "6JjY+aTI6}iV2HK<?*RO2A}|F5sC!>00001bz&|",
    ),
    "Dropout-evaluation": (
        layer(0.5, 3, training=False, called=False),
        "fC6J=a&K^EVRLi}L~?I%Z*_DEaR4cSaRGgC0w`Dn0001TVRU7214lpL00000003AE0001UXkl_?WM5%;Wpi-^DOd{t003@pX>(;?"
        "b7*03WpM>gSO@?B0CaL;X>Mt5XK@CJSOfq70BvD&YjFooSOWk60BdD=aR`bDi%RA3sX+#y09XV7003liVRvx}O9ORcE&",
    ),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Mask):
        return bool(a == b)
    return (repr(a), a.training, a.state_dict(), a.mask) == (repr(b), b.training, b.state_dict(), b.mask)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_was_written_once_is_read(name: str) -> None:
    want, written = WRITTEN[name]
    got = pickle.loads(base64.b85decode(written))
    assert type(got) is type(want)
    assert same(got, want)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", WRITTEN)
def test_a_pickle_names_public_things_only(name: str, protocol: int) -> None:
    data = pickle.dumps(WRITTEN[name][0], protocol)
    assert same(pickle.loads(data), WRITTEN[name][0])
    words = [arg for _, arg, _ in pickletools.genops(data) if isinstance(arg, str)]
    named = {word for arg in words for word in arg.split()}
    # copy_reg is where protocols 0 and 1, and Python 2, find what makes an object of any class.
    made_by_python = {"copy_reg", "_reconstructor", "__builtin__", "object", "functools", "partial", "operator"}
    assert named <= made_by_python | {
        *("dropfast", "Dropout", "Mask", "builtins", "copyreg", "methodcaller", "window"),
        *("rate", "shared_axes", "noise_shape", "training", "mask", "key", "draw"),
    }
    assert len(data) < 500  # a few numbers, no array


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies(name: str, copied: Any) -> None:
    assert same(copied(WRITTEN[name][0]), WRITTEN[name][0])


class Named(Dropout):
    """A subclass that has more to tell."""

    def __init__(self, name: str) -> None:
        super().__init__(0.25, shared_axes=0)
        self.name = name


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_subclass_keeps_what_it_has(again: Any) -> None:
    made = Named("first")
    made(X)
    twin = again(made)
    assert type(twin) is Named
    assert twin.name == "first"
    assert same(twin, made)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"rate": 1.5}, ValueError, "rate must be in"),
        ({"key": -1}, ValueError, "key must be in"),
        ({"noise_shape": (0, 1), "shared_axes": ()}, ValueError, "noise_shape must have entries"),
        ({"training": 1}, TypeError, "training must be a bool"),
        ({"secret": 1}, AttributeError, "secret"),
    ],
    ids=str,
)
def test_a_state_that_is_no_layers(change: dict[str, Any], kind: type[Exception], words: str) -> None:
    state = Dropout(rng=0).__getstate__()
    with pytest.raises(kind, match=words):
        Dropout.__new__(Dropout).__setstate__({**state, **change})
