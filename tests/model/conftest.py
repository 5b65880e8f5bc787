"""The families of models, for this folder's tests."""

from tests.families import family, model_of, parts_of, save_model, sizes, tiny, tiny_dir  # noqa: F401
