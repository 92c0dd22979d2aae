"""Pure tensor math: returns new tensors, never logs, samples implicitly or changes its inputs."""
