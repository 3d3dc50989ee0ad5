"""What the scripts write for TensorBoard beyond one ``tf.summary`` call."""

from typing import Any

import tensorflow as tf


def variable_summaries(name: str, value: Any, step: int | tf.Tensor) -> None:
    """Write mean, standard deviation, maximum, minimum and histogram of a tensor.

    The tags are ``<name>/mean``, ``/stddev``, ``/max``, ``/min`` (Scalars tab) and
    ``<name>/histogram`` (Histograms and Distributions tabs). Call it under a writer. ``value`` has
    any shape and real dtype; ValueError if it is empty. The deviation divides by the count."""
    value = tf.cast(tf.convert_to_tensor(value), tf.float32)
    if 0 in value.shape:
        raise ValueError(f"{name}: a tensor of shape {value.shape} has nothing to summarise")
    tf.summary.scalar(f"{name}/mean", tf.reduce_mean(value), step)
    tf.summary.scalar(f"{name}/stddev", tf.math.reduce_std(value), step)
    tf.summary.scalar(f"{name}/max", tf.reduce_max(value), step)
    tf.summary.scalar(f"{name}/min", tf.reduce_min(value), step)
    tf.summary.histogram(f"{name}/histogram", value, step)


def write_graph(log_dir: str, function: Any) -> None:
    """Write ``f.get_concrete_function(...)``'s graph for the Graphs tab, into ``log_dir``."""
    with tf.summary.create_file_writer(log_dir).as_default() as writer:
        tf.summary.graph(function.graph)
        writer.close()
