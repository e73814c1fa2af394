"""Libraries with arrays in a GPU's memory for the tests, and NumPy, whose arrays stand for such."""

import contextlib
import warnings

import ml_dtypes
import numpy as np
import pytest

from xent_array import _kernels
from xent_array._kernels.cuda import Kernels

from cuda_stand_in import NumpyMemory, Processor, library

DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


class OnProcessor:
    """NumPy's arrays: what no GPU is needed for."""

    real = False

    def __init__(self):
        library()
        self.kernels = Kernels(NumpyMemory(), Processor())

    def make(self, x):
        return np.array(x)

    def numpy(self, x):
        return x

    def dtype(self, name):
        return np.dtype(DTYPES[name])

    def wait(self):
        pass


class OnTorch:
    """torch's CUDA tensors."""

    real = True

    def __init__(self):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU that torch can use")
        from xent_array._backends import _torch_cuda

        self.torch, self.producer = torch, _torch_cuda
        self.kernels = _kernels.for_cuda(_torch_cuda)

    def make(self, x):
        x = np.array(x)
        if x.dtype == ml_dtypes.bfloat16:
            return self.torch.from_numpy(x.view(np.int16)).cuda().view(self.torch.bfloat16)
        return self.torch.from_numpy(x).cuda()

    def numpy(self, x):
        if x.dtype is self.torch.bfloat16:
            return x.cpu().view(self.torch.int16).numpy().view(ml_dtypes.bfloat16)
        return x.cpu().numpy()

    def dtype(self, name):
        return getattr(self.torch, name)

    def wait(self):
        self.torch.cuda.synchronize()

    def zeros(self, shape):
        return self.torch.zeros(shape, dtype=self.torch.float16, device="cuda")

    def devices(self):
        return self.torch.cuda.device_count()

    def room(self):
        """Bytes of memory that nothing has taken."""
        return self.torch.cuda.mem_get_info()[0]

    @contextlib.contextmanager
    def on(self, device):
        with self.torch.cuda.device(device):
            yield

    @contextlib.contextmanager
    def side_stream(self):
        stream = self.torch.cuda.Stream()
        with self.torch.cuda.stream(stream):
            yield
        stream.synchronize()

    def captured(self, call):
        """A graph of a call, and what the call returned; every launch of it is another call."""
        with self.side_stream():
            call()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            results = call()
        return graph.replay, results

    @contextlib.contextmanager
    def never_waiting(self):
        with warnings.catch_warnings():  # that this is a prototype
            warnings.simplefilter("ignore")
            self.torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            self.torch.cuda.set_sync_debug_mode("default")


class OnCupy:
    """CuPy's arrays."""

    real = True

    def __init__(self):
        import cupy

        from xent_array._backends import _cupy_cuda

        self.cupy, self.producer = cupy, _cupy_cuda
        self.kernels = _kernels.for_cuda(_cupy_cuda)

    def make(self, x):
        return self.cupy.array(x)

    def numpy(self, x):
        return self.cupy.asnumpy(x)

    def dtype(self, name):
        return np.dtype(DTYPES[name])

    def wait(self):
        self.cupy.cuda.Device().synchronize()

    def zeros(self, shape):
        return self.cupy.zeros(shape, "float16")

    def devices(self):
        return self.cupy.cuda.runtime.getDeviceCount()

    def room(self):
        return self.cupy.cuda.Device().mem_info[0]

    def on(self, device):
        return self.cupy.cuda.Device(device)

    @contextlib.contextmanager
    def side_stream(self):
        stream = self.cupy.cuda.Stream(non_blocking=True)
        with stream:
            yield
        stream.synchronize()

    def captured(self, call):
        stream = self.cupy.cuda.Stream(non_blocking=True)
        with stream:
            call()
            stream.synchronize()
            stream.begin_capture()
            results = call()
            graph = stream.end_capture()
        return lambda: graph.launch(stream), results

    @contextlib.contextmanager
    def never_waiting(self):
        pytest.skip("CuPy does not tell what waits")
        yield


#: By the name of the library that the tests are chosen by.
GPUS = {"numpy": OnProcessor, "torch": OnTorch, "cupy": OnCupy}
