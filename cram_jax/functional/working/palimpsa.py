"""The Palimpsa scan as a working memory: a matrix a head, and an importance for each number in it (`matrix.py`)."""

from functools import partial

from cram_jax.functional.working import matrix

init = partial(matrix.init, metaplastic=True)
numbers = partial(matrix.numbers, metaplastic=True)
apply, step = matrix.apply, matrix.step
operations = partial(matrix.operations, metaplastic=True)
