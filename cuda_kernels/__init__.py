"""Triton kernels for CUDA devices, one module per op; same names as `bmojo_neuron.ops`."""
