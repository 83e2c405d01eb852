"""Visual question answering in JAX: train, evaluate, explain and convert published VQA systems."""

from typing import Any

from jaxvqa import jaxlib_faults

__version__ = "0.1.0"

jaxlib_faults.protect()


def load(folder: Any, predict: str = "") -> Any:
    """Opens a run to ask about images: `jaxvqa.ask.model.load`, whose arguments and errors it has."""
    from jaxvqa.ask import model  # only here: `import jaxvqa` brings nothing along

    return model.load(folder, predict)
