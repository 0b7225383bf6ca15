"""What was measured, for choice.py. Made by `dmabench tune --from-rows results/reference`: not to be edited.

Each cell: device, compute capability, backward or not, dtype, batch, heads, key/value heads, head dimension, T, window;
milliseconds by backend; the run that timed them and its commit.
"""

from dmabench.kernels.choice import Cell

# fmt: off
CELLS: tuple[Cell, ...] = (
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 1, 128, 8192, 2048,
         (("cuda", 0.7721), ("triton", 0.8418)), "20261125T044633Z-kernels-765a8ad", "765a8ad"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 1, 128, 32768, 2048,
         (("cuda", 2.2652), ("triton", 2.7843)), "20261125T044633Z-kernels-765a8ad", "765a8ad"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 8, 128, 8192, 1024,
         (("cuda", 0.344), ("triton", 0.4122)), "20261124T234814Z-kernels-8f9ea37", "8f9ea37"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 8, 128, 8192, 2048,
         (("cuda", 0.5179), ("triton", 0.6237)), "20261124T234814Z-kernels-8f9ea37", "8f9ea37"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 8, 128, 32768, 1024,
         (("cuda", 1.1062), ("triton", 1.3945)), "20261124T234814Z-kernels-8f9ea37", "8f9ea37"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 8, 128, 32768, 2048,
         (("cuda", 1.9129), ("triton", 2.3823)), "20261124T234814Z-kernels-8f9ea37", "8f9ea37"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 8, 128, 131072, 1024,
         (("cuda", 4.3386), ("triton", 5.4101)), "20261124T234814Z-kernels-8f9ea37", "8f9ea37"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), False, "bfloat16", 1, 16, 8, 128, 131072, 2048,
         (("cuda", 7.6308), ("triton", 9.3557)), "20261124T234814Z-kernels-8f9ea37", "8f9ea37"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), True, "bfloat16", 1, 16, 8, 128, 8192, 1024,
         (("cuda", 2.4208), ("triton", 2.6155), ("flex", 4.1468)), "20261124T233533Z-kernels-d955ade", "d955ade"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), True, "bfloat16", 1, 16, 8, 128, 8192, 2048,
         (("triton", 3.1593), ("cuda", 3.2551), ("flex", 4.8398)), "20261124T233533Z-kernels-d955ade", "d955ade"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), True, "bfloat16", 1, 16, 8, 128, 32768, 1024,
         (("cuda", 6.5675), ("triton", 7.5574), ("flex", 13.2138)), "20261124T233533Z-kernels-d955ade", "d955ade"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), True, "bfloat16", 1, 16, 8, 128, 32768, 2048,
         (("cuda", 10.4746), ("triton", 10.6137), ("flex", 16.5508)), "20261124T233533Z-kernels-d955ade", "d955ade"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), True, "bfloat16", 1, 16, 8, 128, 131072, 1024,
         (("cuda", 23.7008), ("triton", 27.5972), ("flex", 47.5956)), "20261124T233533Z-kernels-d955ade", "d955ade"),
    Cell("NVIDIA H100 80GB HBM3", (9, 0), True, "bfloat16", 1, 16, 8, 128, 131072, 2048,
         (("cuda", 40.3773), ("triton", 40.5211), ("flex", 59.1284)), "20261124T233533Z-kernels-d955ade", "d955ade"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 8192, 1024,
         (("cuda", 0.2231), ("triton", 0.298)), "20261201T014351Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 8192, 8192,
         (("cuda", 0.5771), ("triton", 0.727)), "20261201T014648Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 32768, 1024,
         (("cuda", 0.7445), ("triton", 1.0124)), "20261201T014351Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 32768, 32768,
         (("cuda", 8.8314), ("triton", 10.7228)), "20261201T014712Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 131072, 2048,
         (("cuda", 5.1042), ("triton", 6.9178)), "20261201T014500Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 524288, 2048,
         (("cuda", 20.3938), ("triton", 27.5184)), "20261201T014737Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), False, "bfloat16", 1, 16, 8, 128, 1048576, 2048,
         (("cuda", 41.2932), ("triton", 55.6047)), "20261201T014931Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), True, "bfloat16", 1, 16, 8, 128, 8192, 1024,
         (("cuda", 0.8615), ("triton", 1.2212)), "20261201T014351Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), True, "bfloat16", 1, 16, 8, 128, 8192, 8192,
         (("cuda", 2.3845), ("triton", 3.5172)), "20261201T014648Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), True, "bfloat16", 1, 16, 8, 128, 32768, 1024,
         (("cuda", 3.3992), ("triton", 4.7302)), "20261201T014351Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), True, "bfloat16", 1, 16, 8, 128, 32768, 32768,
         (("cuda", 38.1245), ("triton", 51.8949)), "20261201T014712Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), True, "bfloat16", 1, 16, 8, 128, 131072, 2048,
         (("cuda", 23.8608), ("triton", 33.4885)), "20261201T014500Z-kernels-c137717", "c137717"),
    Cell("NVIDIA H200", (9, 0), True, "bfloat16", 1, 16, 8, 128, 1048576, 2048,
         (("cuda", 202.1034), ("triton", 282.0838)), "20261201T014931Z-kernels-c137717", "c137717"),
)
# fmt: on

SOURCES: dict[str, dict[str, str]] = {
    "765a8ad": {"cuda": "f15f6cb2c0cf", "triton": "f7f0c1e24791"},
    "8f9ea37": {"cuda": "7c463d3da5f5", "triton": "f8ccea41c74d"},
    "c137717": {"cuda": "b0ee3cb4f5f6", "triton": "5d9b65aca4e0"},
    "d955ade": {"cuda": "520ce634f03a", "triton": "53c2f90c455e", "flex": "70b92e928f12"},
}
"""By commit and backend, the digest of its sources then (choice.sources)."""
