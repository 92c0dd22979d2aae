"""What a policy optimizer estimates, in exact numbers, and whether a run ends the same under other circumstances.

The gradient is averaged over every batch that it could meet; runs are repeated on two ranks, in microbatches, and with
a death in between.
"""
