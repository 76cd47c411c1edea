"""Meshes of both kinds: results that say how they are divided, and carries that vary as their inputs do.

On a mesh from `jax.make_mesh` axes are explicit: the type of an array says how it is divided, and each operation must
know how its result is. What is inside our functions is left to the compiler instead, as on a mesh with automatic axes.
In `jax.shard_map` the type of an array says over which axes it varies, and the carry of a scan must say so from the
start.

The compiler cannot divide a kernel that we wrote. On a mesh with automatic axes, which a program is told of by
`jax.set_mesh`, each device runs the kernel on its own sequences.
"""

from collections.abc import Callable
from itertools import takewhile
from math import prod

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # names of the axes of a mesh that divide a batch


def automatic(f: Callable, x, *others, carried=None):
    """Returns f(x, *others). On a mesh with explicit axes the compiler divides what is inside.

    Each result is divided as x is, in the leading axes that are as long as those of x. So results for each sequence
    are divided as the sequences are. Sums over the batch are not, unless their first axis happens to be as long; this
    changes where they are, not what they are.

    Args:
      f: function of arrays, without traced closures.
      carried: if given, f returns (result, carried, ...), and what is carried is divided as it was before.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, others))]
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return f(x, *others)
    divided = lambda array: NamedSharding(mesh, jax.typeof(array).sharding.spec)
    spec = jax.typeof(x).sharding.spec

    def as_x(result) -> NamedSharding:
        pairs = zip(result.shape, x.shape, strict=False)
        return NamedSharding(mesh, PartitionSpec(*spec[: len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))]))

    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (x, *others))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        shapes = jax.eval_shape(f, *bare)
    out = jax.tree.map(as_x, shapes)
    if carried is not None:
        out = type(out)((out[0], jax.tree.map(divided, carried), *out[2:]))
    # Compiled also outside of any jit: auto_axes alone would meet constants that JAX made for explicit axes.
    return jax.jit(jax.sharding.auto_axes(f, out_sharding=out))(x, *others)


def by_sequence(f: Callable, *arrays, axis: int = 0):
    """Returns f(*arrays). On a mesh with automatic axes that divide a batch each device has its own sequences.

    Without such a mesh, or if its axes do not divide the sequences, nothing is divided.

    Args:
      f: function that treats each sequence by itself, without traced closures.
      arrays: those that have axes after `axis` are of sequences; others belong to none.
      axis: of the sequences in these arrays, and in the results.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if name in BATCH_AXES and kind is AxisType.Auto)
    B = jax.tree.leaves(arrays)[0].shape[axis]
    if AxisType.Manual in mesh.axis_types or not axes or B % prod(mesh.shape[name] for name in axes):
        return f(*arrays)
    divided = PartitionSpec(*[None] * axis, axes)
    specs = jax.tree.map(lambda x: divided if x.ndim > axis + 1 else PartitionSpec(), arrays)
    # No check of what varies over which axes: the types of a kernel's results would have to say so.
    return jax.shard_map(f, in_specs=specs, out_specs=divided, check_vma=False)(*arrays)


def varying_like(tree, *others):
    """Returns the tree, whose arrays vary over all mesh axes that the other arrays vary over, in `jax.shard_map`.

    Outside of it nothing changes. A carry that `init_cache` made inside needs it, too, before `step` is scanned.
    """
    varying = lambda leaf: jax.typeof(leaf).manual_axis_type.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(others)))

    def one(leaf):
        new = tuple(sorted(axes - varying(leaf)))
        return jax.lax.pcast(leaf, new, to="varying") if new else leaf

    return jax.tree.map(one, tree)
