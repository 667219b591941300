"""Where images come from. A source is a file here that registers a function.

The function takes those of these keyword arguments that it needs: ``argument`` (what follows its name
and a colon in ``config.dataset.name``), ``data_dir``, ``cache_dir`` and ``encoded``. It returns arrays
(``train_images`` uint8 ``[N, H, W, C]``, ``train_labels`` integers ``[N]``, ``test_images``,
``test_labels``) and the number of classes; where ``encoded``, images may also be sequences of the
bytes of image files. A name that no source has is taken for a tfds data set.
"""

from sdd_jax.registry import Registry

sources = Registry("sdd_jax.data.sources", "config.dataset")
