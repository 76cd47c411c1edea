"""The SSD scan as a working memory: a matrix a head (`matrix.py`)."""

from functools import partial

from cram_jax.functional.working import matrix

init = partial(matrix.init, metaplastic=False)
numbers = partial(matrix.numbers, metaplastic=False)
apply, step = matrix.apply, matrix.step
operations = partial(matrix.operations, metaplastic=False)
