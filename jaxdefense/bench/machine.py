"""What every JAX implementation reports about itself and about the machine it computes on."""

import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxdefense.bench.process import peak_memory
from jaxdefense.convert.directory import resolve_dtype
from jaxdefense.cores import num_cores


class JaxImplementation:
    """An implementation that computes in JAX, on all devices."""

    def peak_memory(self) -> int:
        """Return the peak memory in bytes: of the accelerators if any, else of the process."""
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return sum(found.get("peak_bytes_in_use", 0) for found in stats) or peak_memory()

    def machine(self) -> dict[str, str]:
        """Return the names of devices and processor, the version of JAX and the dtype."""
        return {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processor": f"{platform.machine()}, {num_cores()} cores",
            "jax": jax.__version__,
            "dtype": resolve_dtype("auto"),
        }

    def matmul_rate(self) -> float:
        """Measure the FLOP/s of one large matrix product in the dtype that models compute in.

        One device computes the product. The rate is multiplied by the number of devices, except on
        a CPU, whose simulated devices share one processor.
        """
        dtype = resolve_dtype("auto")
        side = 2048 if dtype == "float32" else 8192
        a = jnp.ones((side, side), dtype)
        product = jax.jit(lambda a: a @ a)
        product(a).block_until_ready()
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            product(a).block_until_ready()
            seconds.append(time.perf_counter() - start)
        num = 1 if jax.default_backend() == "cpu" else jax.device_count()
        return num * 2 * side**3 / float(np.median(seconds))
