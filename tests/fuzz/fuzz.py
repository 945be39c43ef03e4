"""The properties of test_arguments.py, with arguments of a fuzzer that is guided by the code they reach.

    python tests/fuzz/fuzz.py [libFuzzer's options] [FOLDER]     FOLDER: the inputs that reached something new
    python tests/fuzz/fuzz.py FILE                               just this input, and what it is

tests/fuzz/run makes the environment that this needs.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["dropfast"]):
    from test_arguments import Choices, any_arguments, any_recipe


def tell_nobody(_: str) -> None: ...


note: Callable[[str], None] = print if any(Path(word).is_file() for word in sys.argv[1:]) else tell_nobody


def one_input(data: bytes) -> None:
    source = atheris.FuzzedDataProvider(data)
    choices = Choices(lambda n: source.ConsumeIntInRange(0, n - 1), note)
    choices.pick([any_arguments, any_arguments, any_recipe])(choices)


atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
