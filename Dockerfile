# One image, two commands: `python -m api` and `python -m worker` (and `python -m shared.migrations`, once a release).
FROM python:3.13-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

COPY requirements/production.txt requirements/production.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/production.txt

COPY LICENSE ./
COPY shared shared
COPY worker worker
COPY api api

# What an image of yours installs for its agents goes to /packages: `FROM agent-relay` and `RUN pip install …`.
ENV PYTHONUSERBASE=/packages
RUN useradd --system --no-create-home --uid 10001 relay && install --directory --owner relay /keys /packages
USER relay

# Within a container the address is the container's; what is published is the operator's choice.
ENV HOST=0.0.0.0 PORT=8000
EXPOSE 8000
CMD ["python", "-m", "api"]
