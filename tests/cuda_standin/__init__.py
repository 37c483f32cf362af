"""A stand-in for a GPU: runs the CUDA kernels that ship on the CPU, watching them.

`csrc/cuda/*.cu` is compiled as C++ (cuda_standin.h supplies the device's names) with
the instrumentation of the thread sanitizer, whose hooks are our own: each access to
memory is checked for bounds, alignment, uninitialised reads and races (memory.cpp).
Threads are fibers that run in random order (scheduler.cpp). Tests use device.Device.
"""
