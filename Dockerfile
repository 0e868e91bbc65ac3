# The server, its memories in /data (or in PostgreSQL: compose.yaml). No language model comes with
# it: name one with MEMORY_R1_LLM. It only listens once there is a key:
#   docker build --tag memory-r1 .
#   docker run --rm --volume memories:/data memory-r1 keys create app
#   docker run --detach --volume memories:/data --publish 8700:8700 --stop-timeout 40 memory-r1

# The Python that the tests run on.
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY runs runs
COPY memory_r1 memory_r1
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve,postgres]'

FROM python:3.11-slim
RUN useradd --uid 10001 --user-group --no-create-home memory \
    && install --directory --owner memory --group memory /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEMORY_R1_STORE=/data/memory.db
USER 10001:10001
VOLUME /data
EXPOSE 8700
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8700/readyz')"]
ENTRYPOINT ["memory-r1"]
CMD ["serve", "--host", "0.0.0.0"]
