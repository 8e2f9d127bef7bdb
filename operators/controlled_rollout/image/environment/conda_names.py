"""Conda packages that are known to be a project of the Python package index.

Anybody can register a free name on the index, so a conda package is installed from there only if its name stands here
(or its author maps it): `snappy` is a C library on conda, and somebody else's project on the index.

Each line was compared with the names of the distributions inside conda-forge's packages
(https://github.com/prefix-dev/parselmouth, mapping of August 2026): a name is here if its package holds the
distribution of that name. Names of C libraries, and names that the index has for something else (`ignite`), are not.
Variants of a package for one kind of processor, such as `tensorflow-gpu`, stand for the package.
"""

from typing import Final

__all__ = ["OTHER_NAMES", "SAME_NAMES"]

# Conda's name -> the index's.
OTHER_NAMES: Final = {
    "brotli-python": "brotli",
    "dask-core": "dask",
    "docker-py": "docker",
    "h3-py": "h3",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "opencv": "opencv-python-headless",
    "py-opencv": "opencv-python-headless",
    "py-xgboost": "xgboost",
    "pytables": "tables",
    "python-flatbuffers": "flatbuffers",
    "python-graphviz": "graphviz",
    "python-xxhash": "xxhash",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "ray-core": "ray",
    "redis-py": "redis",
    "seaborn-base": "seaborn",
    "tensorflow-base": "tensorflow",
    "tensorflow-cpu": "tensorflow",
    "tensorflow-gpu": "tensorflow",
}

# In canonical form: lower case, with `-` for `.` and `_`.
SAME_NAMES: Final = frozenset(
    """
    absl-py accelerate adlfs aiofiles aiohttp aiosqlite alembic altair annotated-types anyio applicationinsights
    apscheduler argon2-cffi arrow asgiref astropy async-timeout asyncpg attrs autograd azure-common azure-core
    azure-identity azure-keyvault-secrets azure-storage-blob azure-storage-file-datalake babel backoff bcrypt
    beautifulsoup4 biopython bitsandbytes bleach blinker bokeh boltons boto3 botocore bottle bottleneck cachecontrol
    cachetools catboost category-encoders certifi cffi chardet charset-normalizer click clickhouse-driver cloudpickle
    cmaes cmdstanpy colorama colorlog contourpy coverage cryptography cvxopt cvxpy cycler cython cytoolz dash dask
    databricks-sdk dataclasses-json datasets datashader debugpy decorator deepdiff defusedxml deprecated diffusers
    dill distributed distro django djangorestframework docopt duckdb ecos einops elasticsearch email-validator emcee
    et-xmlfile evaluate faker fastapi fastavro fastparquet feather-format featuretools filelock fiona flask flask-cors
    flask-restful flask-sqlalchemy flax fonttools formulaic freezegun frozenlist fsspec ftfy future gast gensim
    geopandas geopy gevent gitpython gluonts google-api-core google-auth google-cloud-bigquery google-cloud-storage
    googleapis-common-protos gradio greenlet grpcio grpcio-tools gspread gunicorn gymnasium h2 h5netcdf h5py hdbscan
    hiredis holidays httpcore httplib2 httptools httpx huggingface-hub humanize hvplot hydra-core hyperopt hypothesis
    idna imageio imbalanced-learn implicit importlib-metadata importlib-resources iniconfig invoke ipykernel ipython
    ipywidgets isodate itsdangerous jax jaxlib jedi jellyfish jinja2 jmespath joblib jpype1 json5 jsonpatch jsonpickle
    jsonpointer jsonschema jupyter-client jupyter-core kafka-python keras keras-preprocessing kiwisolver langchain
    langdetect librosa lifelines lightfm lightgbm lightning lightning-utilities lime llvmlite lmfit locket loguru lxml
    lz4 mako markdown markdown-it-py markupsafe marshmallow matplotlib matplotlib-inline ml-dtypes mlflow
    mlflow-skinny mlxtend mock modin more-itertools mpmath msal msal-extensions msgpack-numpy multidict multiprocess
    mypy-extensions mysql-connector-python mysqlclient natsort nbconvert nbformat nest-asyncio netcdf4 networkx
    ngboost nibabel nltk numba numexpr numpy oauthlib odfpy omegaconf onnx onnxmltools onnxruntime openai opencensus
    openpyxl opentelemetry-api opentelemetry-sdk optuna orjson osqp packaging pandas pandera papermill param paramiko
    parso partd passlib pathos pathspec patsy peewee peft pendulum pexpect pillow pint platformdirs plotly plotnine
    pluggy ply pmdarima polars portalocker pox ppft prefect prettytable prometheus-client prompt-toolkit propcache
    prophet proto-plus protobuf psutil psycopg psycopg2 pulp pure-eval py py-cpuinfo py4j pyarrow pyasn1
    pyasn1-modules pyathena pybind11 pycaret pycparser pycryptodome pycryptodomex pydantic pydantic-core
    pydantic-settings pydot pygments pyhive pyjwt pymc pymc3 pymongo pymysql pynacl pynndescent pyod pyodbc pyomo
    pyopenssl pyparsing pyproj pyrsistent pyspark pystan python-dateutil python-dotenv python-json-logger
    python-levenshtein python-multipart python-slugify python-snappy pytorch-lightning pytz pywavelets pyyaml pyzmq
    rapidfuzz rasterio recordlinkage regex reportlab requests requests-oauthlib requests-toolbelt responses retrying
    rich river rpds-py rsa rtree ruamel-yaml s3fs s3transfer safetensors scikit-image scikit-learn
    scikit-learn-intelex scikit-optimize scikit-surprise scipy scrapy seaborn semver sentence-transformers
    sentencepiece sentry-sdk setuptools shap shapely simplejson simpy six sklearn-pandas sktime slicer smart-open
    smmap sniffio snowflake-connector-python snowflake-snowpark-python snowflake-sqlalchemy sortedcontainers soupsieve
    spacy sqlalchemy sqlparse srsly stack-data starlette statsforecast statsmodels streamlit stumpy sympy tabulate
    tblib tenacity tensorboard tensorboardx tensorflow tensorflow-datasets tensorflow-hub tensorflow-probability
    termcolor textblob tf2onnx theano thinc threadpoolctl tifffile tiktoken timm tinycss2 tokenizers toml tomli
    tomlkit toolz torchaudio torchmetrics torchtext torchvision tornado tqdm traitlets transformers trio tsfresh
    tslearn typeguard typer typing-extensions tzlocal ujson umap-learn unidecode uritemplate urllib3 uvicorn uvloop
    wandb watchdog watchfiles wcwidth webencodings websocket-client websockets werkzeug wheel wordcloud wrapt xarray
    xformers xgboost xlrd xlsxwriter xlwt xmltodict yarl ydata-profiling yellowbrick yfinance zarr zeep zict zipp
    zope-interface zstandard
    """.split()
)
