"""The same computations in PyTorch, written as one would write them there, to be timed beside ours."""
