"""Whole models: from Keras' layers to these."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import keras

from dropfast.keras._backends import supports_jit
from dropfast.keras.layers import Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D

_log = logging.getLogger("dropfast.keras")

_OURS: dict[type[keras.Layer], type[Dropout]] = {
    keras.layers.Dropout: Dropout,
    keras.layers.SpatialDropout1D: SpatialDropout1D,
    keras.layers.SpatialDropout2D: SpatialDropout2D,
    keras.layers.SpatialDropout3D: SpatialDropout3D,
}

#: Those of Keras' layers that hold what they were given. What others hold they make, also when they are loaded.
_HOLDERS = (keras.Model, keras.layers.Wrapper, keras.layers.Pipeline)


def convert(model: keras.Layer) -> list[str]:
    """Turn every `keras.layers.Dropout` and SpatialDropout of a model into dropfast's, and return their names.

    Parameters
    ----------
    model : keras.Layer
        Changed in place: a functional, Sequential or subclassed model, with models and layers inside. The layers stay
        the same objects, with their name, rate, noise_shape, seed and place; weights and optimizers are not touched.

    Returns
    -------
    list of str
        The names of what was turned, as in ``"encoder/dropout"`` for a layer of a layer; ``""`` for the model itself.

    Raises
    ------
    TypeError
        For what is no layer of Keras.
    ValueError
        For a layer with a seed that dropfast does not take. Nothing is changed then.

    Notes
    -----
    Layers with rate 0 stay as they are. So do layers that drop by themselves: those with a rate of their own for
    attention or recurrence, other kinds of noise, and subclasses of Keras' Dropout. The logger "dropfast.keras" has a
    warning that says which, and why.

    A model of your own class makes its layers itself, Keras' again when it is loaded: convert it before its weights are
    loaded. A functional or Sequential one is loaded as it was saved.

    Examples
    --------
    >>> import keras
    >>> import dropfast.keras
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), keras.layers.Dropout(0.1, name="drop")])
    >>> dropfast.keras.convert(model)
    ['drop']
    >>> type(model.layers[1])
    <class 'dropfast.keras.Dropout'>
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model must be a layer or a model of Keras, got {type(model).__name__}")
    names, left, seen = [], [], set()
    turned: dict[int, keras.Layer] = {}
    for name, layer, owner in _walk(model):
        if type(layer) in _OURS and not _makes_its_own(owner):
            if layer.rate > 0:
                names.append(name)
                turned[id(layer)] = layer
        elif id(owner) not in seen and (reason := _reason(layer)):
            seen.add(id(layer))
            left.append(f"{name or 'the model'} ({type(layer).__name__}, {reason})")
    new = [_like(layer) for layer in turned.values()]
    for layer, like in zip(turned.values(), new, strict=True):
        _become(layer, like)
    if turned:
        _forget_what_was_traced(model)
    if left:
        _log.warning("convert leaves %s as it is", ", ".join(left))
    return names


def _walk(
    layer: keras.Layer, name: str = "", owner: keras.Layer | None = None
) -> Iterator[tuple[str, keras.Layer, keras.Layer | None]]:
    """Yield the name of each layer, itself, and the layer that it is a part of."""
    yield name, layer, owner
    for part in layer._layers:
        yield from _walk(part, f"{name}/{part.name}" if name else part.name, layer)


def _makes_its_own(layer: keras.Layer | None) -> bool:
    """Return whether a layer is one of Keras' that makes the layers that it is made of."""
    kinds = () if layer is None or isinstance(layer, _HOLDERS) else type(layer).__mro__
    return any(kind.__module__.startswith("keras.src.layers.") and kind is not keras.Layer for kind in kinds)


def _reason(layer: Any) -> str | None:
    """Return why a layer that drops something stays as it is."""
    if isinstance(layer, Dropout) or type(layer) in _OURS:
        return None
    if isinstance(layer, (keras.layers.GaussianDropout, keras.layers.AlphaDropout)):
        return f"which is other noise, rate={layer.rate}" if layer.rate > 0 else None
    if any(isinstance(layer, kind) for kind in _OURS):
        return f"which is a class of its own, rate={layer.rate}" if layer.rate > 0 else None
    names = ("dropout", "recurrent_dropout") if _makes_its_own(layer) else ()
    rates = {name: getattr(layer, name, 0) for name in names}
    given = [f"{name}={rate}" for name, rate in rates.items() if isinstance(rate, (int, float)) and rate > 0]
    return f"which drops by itself, {', '.join(given)}" if given else None


def _like(layer: keras.Layer) -> Dropout:
    """Return a layer of ours that does what Keras' does."""
    config = layer.get_config()
    return _OURS[type(layer)](**{k: config[k] for k in ("rate", "noise_shape", "data_format", "seed") if k in config})


def _become(layer: keras.Layer, like: Dropout) -> None:
    """Turn Keras' layer into ours, with the state of `like`."""
    layer._tracker.unlock()
    layer._tracker.untrack(layer.seed_generator)
    layer.__class__ = type(like)
    for name in ("rate", "noise_shape", "seed", "seed_generator", "supports_jit", "input_spec", "data_format"):
        if hasattr(like, name):
            setattr(layer, name, getattr(like, name))
    layer._tracker.lock()


def _forget_what_was_traced(model: keras.Layer) -> None:
    """Let Keras make anew what it has made of the layers that were."""
    for _, layer, _ in _walk(model):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
            if layer.compiled and layer.jit_compile and not supports_jit:
                layer.jit_compile = False
    for module in list(model.modules()) if hasattr(model, "modules") else ():  # on PyTorch; some are no parts to Keras
        if hasattr(module, "_torch_params"):  # the variables of a layer and its parts, as PyTorch has them
            module._track_variables()
