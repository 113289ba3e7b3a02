# One image, two commands: `agent-relay api` and `agent-relay worker` (and `agent-relay migrate`, once a release).
FROM python:3.13-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

COPY requirements/production.txt requirements/production.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/production.txt

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
COPY shared /source/shared
COPY worker /source/worker
COPY api /source/api
COPY client /source/client
COPY embedded /source/embedded
RUN pip install --no-cache-dir --no-deps --no-build-isolation /source && rm -rf /source

# What an image of yours installs for its agents goes to /packages: `FROM agent-relay` and `RUN pip install …`.
ENV PYTHONUSERBASE=/packages
RUN useradd --system --no-create-home --uid 10001 relay && install --directory --owner relay /packages
USER relay

# Within a container the address is the container's; what is published is the operator's choice.
ENV HOST=0.0.0.0 PORT=8000
EXPOSE 8000
CMD ["agent-relay", "api"]
