# paretune on a Ray node: docker build -t paretune .                                    (CPU)
#                         docker build -t paretune:cuda --build-arg ACCELERATOR=cuda .  (CUDA)
#
# The image holds the dependencies at the versions of constraints.txt, and paretune itself; a search
# that is submitted brings its own paretune along. Every node of a cluster needs this image, as Ray,
# Python and torch have to be the same everywhere.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
RUN pip install --no-cache-dir build==1.6.1
COPY . .
RUN python -m build --wheel --outdir /wheel .

FROM python:${PYTHON}-slim
ARG ACCELERATOR=cpu
RUN apt-get update \
  && apt-get install -y --no-install-recommends procps wget \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --create-home --uid 1000 ray
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheel /tmp/wheel
# torch for processors comes from an index of its own; PyPI's brings CUDA's libraries
RUN set -eu; \
  torch=$(grep -E '^torch(vision)?==' /tmp/constraints.txt); \
  case "$ACCELERATOR" in \
    cpu) pip install --no-cache-dir $torch --index-url https://download.pytorch.org/whl/cpu ;; \
    cuda) pip install --no-cache-dir $torch ;; \
    *) echo "ACCELERATOR is cpu or cuda, not '$ACCELERATOR'"; exit 1 ;; \
  esac; \
  sed -E 's/^(torch(vision)?)==([^+]*).*/\1>=\3/' /tmp/constraints.txt > /tmp/rest.txt; \
  ray=$(sed -n 's/^ray==//p' /tmp/constraints.txt); \
  pip install --no-cache-dir -c /tmp/rest.txt /tmp/wheel/*.whl "ray[default,tune]==$ray"; \
  rm -rf /tmp/wheel /tmp/*.txt
ENV OMP_NUM_THREADS=1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
USER ray
WORKDIR /home/ray
CMD ["paretune", "--help"]
