"""Traces a training step of the published presets at full size for a GPU that is not there.

PyTorch's CPU build is made to believe in one CUDA device (`device.py`), whose tensors have a shape and a
dtype but no values. `eager.py` runs a step on them; `inductor.py` lets the compiler write its kernels
for an H100 and counts what they would move. Nothing is computed, so nothing here says that a result is right.
"""
