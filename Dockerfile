# blda in a container:
#
#     docker build --tag blda .
#     docker run --rm --volume "$PWD:/data" blda check --model net.toml --images frames/
#
# With CUDA, on a host with NVIDIA's container toolkit, from an image of CUDA, or one that has PyTorch already:
#
#     docker build --tag blda:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#     docker run --rm --gpus all --volume "$PWD:/data" blda:cuda check --model net.toml --images frames/
#
# .ci/container tries these steps, also without a container runtime.
ARG BASE=python:3.13-slim
FROM ${BASE}

# Images of CUDA have no Python. gcc is for Triton's kernels.
RUN command -v python3 > /dev/null || { apt-get update && \
    apt-get install --yes --no-install-recommends python3 python3-venv gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }

WORKDIR /opt/blda
COPY pyproject.toml constraints.txt README.md LICENSE source/
COPY blda_cli source/blda_cli
RUN python3 -m venv --system-site-packages . && \
    bin/python -m pip install --no-cache-dir -c source/constraints.txt "source/[all]" && \
    rm -r source
ENV PATH=/opt/blda/bin:$PATH

WORKDIR /data
ENTRYPOINT ["blda"]
