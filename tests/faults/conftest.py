"""The kills as a module, and a PostgreSQL server for those that need one."""

import importlib.util
import sys
from pathlib import Path

import pytest
from postgres_server import PostgresServer


@pytest.fixture(scope="session")
def kills():
    """tests/faults/kills.py as a module."""
    path = Path(__file__).with_name("kills.py")
    spec = importlib.util.spec_from_file_location("paretune_kills", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def postgres(monkeypatch):
    """A server; its password is in the environment."""
    server = PostgresServer()
    monkeypatch.setenv("PGPASSWORD", server.password)
    yield server
    server.remove()


@pytest.fixture
def cluster():
    """A Ray cluster without nodes yet."""
    from ray_cluster import RayCluster

    cluster = RayCluster()
    yield cluster
    cluster.remove()
