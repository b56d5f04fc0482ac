# Two images from one file, installed by the Makefile's own step:
#   docker build --target teacher -t decant-teacher .   # labels: Ray, transformers, S3
#   docker build --target student -t decant-student .   # trains: no Ray
# On a GPU cluster, pass a CUDA base with Python: --build-arg BASE=...

ARG BASE=python:3.12-slim

FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    VENV=/opt/decant
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 decant
WORKDIR /srv/decant
COPY Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY student student
COPY jobs jobs
ENV PATH="${VENV}/bin:${PATH}"

FROM base AS teacher
RUN make install EXTRAS=teacher,s3,cluster
USER 1000
WORKDIR /home/decant
ENTRYPOINT ["decant"]
CMD ["--help"]

FROM base AS student
RUN make install EXTRAS=student,s3
USER 1000
WORKDIR /home/decant
ENTRYPOINT ["decant"]
CMD ["--help"]
