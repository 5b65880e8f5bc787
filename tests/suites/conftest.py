"""The families of models, for this folder's tests."""

from tests.families import model_of  # noqa: F401
