"""NKI kernels for Neuron devices, one module per op; same names as `bmojo_neuron.ops`."""
