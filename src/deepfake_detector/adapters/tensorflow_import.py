"""The import of TensorFlow and Keras, which is most of a worker's way to its first step."""

from __future__ import annotations

import sys

# Keras imports them where they are installed, for wrappers and galleries that nothing here uses, and does without them
# where they are not (keras 3.15, wrappers/fixes.py and visualization/plot_image_gallery.py).
UNUSED = ("matplotlib", "sklearn")


def import_tensorflow() -> None:
    """Import TensorFlow and Keras without what Keras alone wants of other packages: these can be imported afterwards.

    That is 2.4 s of CPU instead of 4.2, and 570 MB instead of 650. To be called before anything imports either of them;
    afterwards it does nothing.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # its import raises ImportError
    try:
        import tensorflow  # noqa: F401, I001
        import keras  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
