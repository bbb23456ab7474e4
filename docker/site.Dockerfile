# The public board: reads the database, never loads a model.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY benchmark benchmark
COPY tasks tasks
COPY leaderboard leaderboard
COPY submissions submissions
RUN pip install -c constraints.txt '.[postgres]' \
    && useradd --create-home --uid 1000 tomoprobe \
    && mkdir /data && chown tomoprobe /data
USER tomoprobe
ENV TOMOPROBE_HOME=/data
EXPOSE 8000
# a container's port is published by its operator; inside it listens on all addresses
CMD ["tomoprobe", "serve", "--host", "0.0.0.0", "--port", "8000"]
