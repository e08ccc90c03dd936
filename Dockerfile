# JupyterLab with the notebooks: docs/start.md has the commands. The federation's container is deploy/Dockerfile.
FROM python:3.11-slim

# cpu, or cuda for NVIDIA cards (some gigabytes more)
ARG TORCH=cpu

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reader \
    && install --directory --owner reader --group reader /home/reader/vfmgl

USER 1000:1000
WORKDIR /home/reader/vfmgl
COPY --chown=reader:reader . .

# pip takes 2.15.0+cpu of this index before 2.15.0 of PyPI, which is the build for CUDA
RUN if [ "$TORCH" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi \
    && PIP_NO_CACHE_DIR=1 ./run_all.sh install

ENV MPLBACKEND=Agg
EXPOSE 8888
ENTRYPOINT ["./run_all.sh"]
CMD ["lab", "--ip=0.0.0.0", "--no-browser"]
