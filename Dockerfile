# One file, a target per service: docker build --target router . (or prefix-cache, text-worker, splat-worker, dit-worker,
# dit-worker-cuda, device). Images for CPUs hold no compiler.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TOP_PAD_=16777216
RUN groupadd --gid 10001 headway && useradd --uid 10001 --gid headway --create-home headway \
    && install -d -o headway -g headway /run/headway /home/headway/.cache/headway /app/numba
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY headway headway
COPY services services
COPY kernels kernels
COPY models models
COPY deploy/image /usr/local/bin/

FROM base AS light
RUN python -m pip install .

FROM light AS router
USER headway
EXPOSE 50050 9100
ENTRYPOINT ["headway-router", "--listen", "0.0.0.0:50050", "--metrics-port", "9100"]

FROM light AS prefix-cache
USER headway
EXPOSE 50054 9100
ENTRYPOINT ["headway-prefix-cache", "--listen", "0.0.0.0:50054", "--metrics-port", "9100"]

FROM light AS device
USER headway
ENTRYPOINT ["python", "-m", "headway.device", "--socket", "/run/headway/device.sock"]

FROM base AS text-worker
# Name an index of CPU builds of torch here, or the image takes the CUDA build with its gigabytes.
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip install '.[text]' && settle.sh
USER headway
RUN prebuild.sh 127.0.0.1:50061 headway-text-worker --model /app/models/text
EXPOSE 50061 9100
ENTRYPOINT ["start.sh", "headway-text-worker", "--listen", "0.0.0.0:50061", "--metrics-port", "9100", "--model", "/app/models/text"]

FROM base AS dit-worker
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip install '.[dit]'
USER headway
EXPOSE 50063 9100
ENTRYPOINT ["headway-dit-worker", "--listen", "0.0.0.0:50063", "--metrics-port", "9100", "--model", "/app/models/dit-digits"]

FROM base AS splat-worker
RUN python -m pip install '.[splat]' && settle.sh
USER headway
RUN prebuild.sh 127.0.0.1:50062 headway-splat-worker --scenes /app/models/scenes
EXPOSE 50062 9100
ENTRYPOINT ["start.sh", "headway-splat-worker", "--listen", "0.0.0.0:50062", "--metrics-port", "9100", "--scenes", "/app/models/scenes"]

FROM dit-worker AS dit-worker-cuda
# Triton compiles a launcher in C for each kernel when it first runs. The driver comes with the container runtime.
USER root
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER headway
