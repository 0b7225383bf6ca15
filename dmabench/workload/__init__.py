"""What `dmabench kernels` measures: cells, sweeps, presets, and the tensors, layers and caches of each attention."""
