# Evaluates encoders; writes scores into the database that the site reads.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY benchmark benchmark
COPY tasks tasks
COPY leaderboard leaderboard
COPY submissions submissions
# the default build of torch carries its CUDA libraries with it
RUN pip install -c constraints.txt '.[postgres]' \
    && useradd --create-home --uid 1000 tomoprobe \
    && mkdir /data && chown tomoprobe /data
USER tomoprobe
ENV TOMOPROBE_HOME=/data TOMOPROBE_DATA=/images
ENTRYPOINT ["tomoprobe"]
CMD ["quickstart", "--no-serve"]
