# SPDX-License-Identifier: Apache-2.0
"""The entropy gate as others would write it: PyTorch, torch.compile, Triton, CuPy, JAX.

Each maps [batch, classes] logits on the device to exit, label and score, in float32
inside. None has guards for NaN and infinities, which is to their advantage.
"""

import os

from gpu_rows import CouldNotRunError, need

WARP_CLASSES = 4096  # Triton holds a row in registers up to here
ONLINE_BLOCK = 4096


# ---- PyTorch -------------------------------------------------------------------------
def torch_composites(torch, threshold):
    """Ways to write it; the fastest that is right stands for eager PyTorch."""

    def log_softmax(z):
        log_p = torch.log_softmax(z.float(), -1)
        score = -(log_p.exp() * log_p).sum(-1)
        return score < threshold, z.argmax(-1), score

    def by_hand(z):
        largest, label = z.max(-1)
        d = z.float() - largest.float()[:, None]
        e = d.exp()
        total = e.sum(-1)
        score = total.log() - (e * d).sum(-1) / total
        return score < threshold, label, score

    def cast_in_softmax(z):
        # One kernel reads the 16-bit logits and writes float32.
        log_p = torch.log_softmax(z, -1, dtype=torch.float32)
        score = torch.special.entr(log_p.exp()).sum(-1)
        return score < threshold, z.argmax(-1), score

    return [log_softmax, by_hand, cast_in_softmax]


def compiled(torch, threshold, device):
    """torch.compile of two of them; `max-autotune` searches Triton's settings too."""
    if device == "cuda":
        need("triton")
    torch.compiler.reset()  # each shape anew: there is a limit to variants of one function
    options = {"mode": "max-autotune-no-cudagraphs"} if device == "cuda" else {}
    # Each shape has a kernel of its own, as ours has.
    return [
        named(torch.compile(body, dynamic=False, **options), body.__name__)
        for body in torch_composites(torch, threshold)[:2]
    ]


def named(run, name):
    def call(z):
        return run(z)

    call.__name__ = name
    return call


# ---- CuPy ----------------------------------------------------------------------------
CUPY_KERNEL = r"""
extern "C" __global__ void gate(const T* z, long long classes, float threshold,
                                bool* exits, long long* labels, float* scores) {
  // A block owns a row; it is read twice, the second time mostly from the cache.
  __shared__ float m_of[32], s_of[32], w_of[32];
  __shared__ int l_of[32];
  const T* row = z + (long long)blockIdx.x * classes;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  float m = -INFINITY;
  int label = 0x7fffffff;
  for (long long c = threadIdx.x; c < classes; c += blockDim.x) {
    float x = (float)row[c];
    if (x > m) { m = x; label = (int)c; }
  }
  for (int step = 16; step; step /= 2) {
    float other = __shfl_xor_sync(~0u, m, step);
    int its = __shfl_xor_sync(~0u, label, step);
    if (other > m || (other == m && its < label)) { m = other; label = its; }
  }
  if (lane == 0) { m_of[warp] = m; l_of[warp] = label; }
  __syncthreads();
  m = m_of[0]; label = l_of[0];
  for (int i = 1; i < warps; ++i)
    if (m_of[i] > m || (m_of[i] == m && l_of[i] < label)) { m = m_of[i]; label = l_of[i]; }
  float s = 0, w = 0;
  for (long long c = threadIdx.x; c < classes; c += blockDim.x) {
    float d = (float)row[c] - m, e = __expf(d);
    s += e; w += e * d;
  }
  for (int step = 16; step; step /= 2) {
    s += __shfl_xor_sync(~0u, s, step); w += __shfl_xor_sync(~0u, w, step);
  }
  if (lane == 0) { s_of[warp] = s; w_of[warp] = w; }
  __syncthreads();
  if (threadIdx.x == 0) {
    s = w = 0;
    for (int i = 0; i < warps; ++i) { s += s_of[i]; w += w_of[i]; }
    float score = logf(s) - w / s;
    exits[blockIdx.x] = score < threshold; labels[blockIdx.x] = label;
    scores[blockIdx.x] = score;
  }
}
"""
CUPY_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
CUPY_HEADERS = "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n"


def cupy_kernels(torch, threshold, dtype):
    """A raw kernel of CuPy, a block for each row."""
    cupy = need("cupy")
    source = CUPY_HEADERS + CUPY_KERNEL.replace("const T*", f"const {CUPY_TYPES[dtype]}*")
    kernel = cupy.RawKernel(source, "gate", backend="nvcc")

    def run(z):
        rows, classes = z.shape
        threads = min(512, max(32, -(-classes // 4) // 32 * 32))
        exits = torch.empty(rows, dtype=torch.bool, device="cuda")
        labels = torch.empty(rows, dtype=torch.int64, device="cuda")
        scores = torch.empty(rows, dtype=torch.float32, device="cuda")
        stream = torch.cuda.current_stream().cuda_stream
        with cupy.cuda.ExternalStream(stream):
            pointers = [x.data_ptr() for x in (z, exits, labels, scores)]
            kernel(
                (rows,),
                (threads,),
                (
                    pointers[0],
                    cupy.int64(classes),
                    cupy.float32(threshold),
                    *pointers[1:],
                ),
            )
        return exits, labels, scores

    run.__name__ = "raw_kernel"
    return [run]


# ---- JAX -----------------------------------------------------------------------------
def jax_composites(threshold):
    """The two ways under jit, on JAX's own arrays."""
    jax = need("jax")
    jnp = jax.numpy

    @jax.jit
    def log_softmax(z):
        log_p = jax.nn.log_softmax(z.astype(jnp.float32))
        score = -(jnp.exp(log_p) * log_p).sum(-1)
        return score < threshold, z.argmax(-1), score

    @jax.jit
    def by_hand(z):
        d = z.astype(jnp.float32) - z.max(-1, keepdims=True).astype(jnp.float32)
        e = jnp.exp(d)
        total = e.sum(-1)
        score = jnp.log(total) - (e * d).sum(-1) / total
        return score < threshold, z.argmax(-1), score

    return [log_softmax, by_hand]


# ---- All -----------------------------------------------------------------------------
def contestants(torch, native, threshold, dtype, device):
    """Name -> a function that makes its candidates, or says what is missing."""

    def triton():
        need("triton")
        if device != "cuda" and not os.environ.get("TRITON_INTERPRET"):
            raise CouldNotRunError(
                "Triton's kernels need a GPU; TRITON_INTERPRET=1 emulates them"
            )
        import kernel_triton

        return kernel_triton.candidates(torch, threshold)

    def cupy():
        if device != "cuda":
            raise CouldNotRunError("CuPy's kernels need a GPU")
        return cupy_kernels(torch, threshold, dtype)

    return {
        "native": lambda: [native.gate(torch, threshold)],
        "torch": lambda: torch_composites(torch, threshold),
        "torch.compile": lambda: compiled(torch, threshold, device),
        "triton": triton,
        "cupy": cupy,
        "jax": lambda: jax_composites(threshold),
    }
