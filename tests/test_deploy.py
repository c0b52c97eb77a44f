"""What lies in deploy/ fits the program: flags, ports, probes and variables are real, and no secret is written down.

Neither docker nor a Kubernetes is at hand where these tests run: that the files are accepted by either is not shown
here, that what they say of this program is true is.
"""

import json
import re
from pathlib import Path

import click
import pytest
import yaml
from conftest import colour_embedder

from fewshot.cli.main import COMMANDS, main
from fewshot.cli.serve import serve
from fewshot.gallery import Gallery
from fewshot.service.app import END_S, create_app
from fewshot.service.server import GRACE_S

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
# What the service and its database driver read from the environment.
VARIABLES = {"FEWSHOT_INDEX", "FEWSHOT_THREADS", "FEWSHOT_CACHE", "PGPASSWORD"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def kubernetes():
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


@pytest.fixture
def routes(tmp_path):
    with Gallery(tmp_path / "index", create=True, embedder=colour_embedder()) as gallery:
        return set(create_app(gallery).openapi()["paths"])


def served(words):
    """What `fewshot serve` would be told by these words; an unknown or impossible one raises."""
    assert words[0] == "serve"
    assert words[0] in COMMANDS
    return serve.make_context("serve", list(words[1:])).params


def service_container(kubernetes):
    (container,) = kubernetes["Deployment", "fewshot"]["spec"]["template"]["spec"]["containers"]
    return container


def database_container(kubernetes):
    (container,) = kubernetes["StatefulSet", "database"]["spec"]["template"]["spec"]["containers"]
    return container


def instructions(word):
    """The Dockerfile's lines that begin with a word, continuations joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1)[1].strip() for line in text.splitlines() if line.startswith(f"{word} ")]


# ---- flags and ports


def test_the_image_starts_the_service_at_the_port_it_names():
    (entry,), (words,), (port,) = instructions("ENTRYPOINT"), instructions("CMD"), instructions("EXPOSE")
    assert json.loads(entry) == ["fewshot"]
    asked = served(json.loads(words))
    assert (asked["host"], asked["port"]) == ("0.0.0.0", int(port))  # what is in the image is reached from outside it
    assert asked["index"] == instructions("VOLUME")[0]


def test_compose_serves_where_it_publishes(compose):
    asked = served(compose["service"]["command"])
    (published,) = compose["service"]["ports"]
    address, outer, inner = published.split(":")
    assert asked["port"] == int(inner)
    assert (address, outer) == ("127.0.0.1", "8000")  # others come through a proxy with TLS
    assert (DEPLOY / compose["service"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / compose["service"]["build"]["dockerfile"]).exists()


def test_kubernetes_serves_at_the_port_that_probes_and_service_name(kubernetes):
    container = service_container(kubernetes)
    asked = served(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": asked["port"]}
    (port,) = kubernetes["Service", "fewshot"]["spec"]["ports"]
    assert port["targetPort"] in ports
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"]["port"] in ports


def test_what_is_selected_is_what_is_labelled(kubernetes):
    for kind, name in (("Deployment", "fewshot"), ("StatefulSet", "database")):
        spec = kubernetes[kind, name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels == kubernetes["Service", name]["spec"]["selector"]
    assert {each["metadata"]["namespace"] for each in kubernetes.values()} == {"fewshot"}
    target = kubernetes["HorizontalPodAutoscaler", "fewshot"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in kubernetes


# ---- probes


def test_every_probe_asks_a_route_that_there_is(compose, kubernetes, routes):
    container = service_container(kubernetes)
    paths = {container[kind]["httpGet"]["path"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")}
    checks = [json.dumps(compose["service"]["healthcheck"]["test"]), *instructions("HEALTHCHECK")]
    for check in checks:
        (path,) = re.findall(r"http://127\.0\.0\.1:8000(/[\w/]+)", check)
        paths.add(path)
    assert paths == {"/v1/health/live", "/v1/health/ready"}
    assert paths <= routes
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/health/ready"  # a replica without engine waits
    assert container["livenessProbe"]["httpGet"]["path"] == "/v1/health/live"  # and is not killed for it


def test_a_stop_leaves_time_for_what_was_accepted(compose, kubernetes):
    pod = kubernetes["Deployment", "fewshot"]["spec"]["template"]["spec"]
    assert GRACE_S + END_S < 30  # what docs/service.md promises
    assert pod["terminationGracePeriodSeconds"] > 30
    assert int(compose["service"]["stop_grace_period"].rstrip("s")) > 30


# ---- the database, secrets, limits


def test_the_database_has_pgvector_and_is_where_the_service_looks(compose, kubernetes):
    for container, service in (
        (compose["database"], compose["service"]["environment"]),
        (database_container(kubernetes), {e["name"]: e.get("value") for e in service_container(kubernetes)["env"]}),
    ):
        assert re.fullmatch(r"pgvector/pgvector:pg\d+", container["image"])
        own = container.get("environment") or {e["name"]: e.get("value") for e in container["env"]}
        expected = f"postgresql://{own['POSTGRES_USER']}@database:5432/{own['POSTGRES_DB']}"
        assert service["FEWSHOT_INDEX"] == expected
    assert kubernetes["Service", "database"]["spec"]["ports"][0]["port"] == 5432


def test_variables_are_ones_that_are_read(compose, kubernetes):
    assert set(compose["service"]["environment"]) <= VARIABLES
    assert {each["name"] for each in service_container(kubernetes)["env"]} <= VARIABLES
    program = "".join(file.read_text() for file in (ROOT / "fewshot").rglob("*.py"))
    for name in VARIABLES - {"PGPASSWORD"}:
        assert f'"{name}"' in program, name


def test_no_password_is_written_down(compose, kubernetes):
    for service in compose.values():
        for name, value in service["environment"].items():
            if "PASSWORD" in name:
                assert re.fullmatch(r"\$\{FEWSHOT_DB_PASSWORD:\?.+\}", value)  # and starting without it fails
    for container in (service_container(kubernetes), database_container(kubernetes)):
        named = [each for each in container["env"] if "PASSWORD" in each["name"]]
        assert named
        assert all(set(each) == {"name", "valueFrom"} and "secretKeyRef" in each["valueFrom"] for each in named)
    assert not [kind for kind, _ in kubernetes if kind == "Secret"]


def test_everything_has_limits_and_no_more_rights_than_it_needs(compose, kubernetes):
    for service in compose.values():
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert (
        compose["service"]["environment"]["FEWSHOT_THREADS"]
        == compose["service"]["deploy"]["resources"]["limits"]["cpus"]
    )
    for container in (service_container(kubernetes), database_container(kubernetes)):
        for part in ("requests", "limits"):
            assert set(container["resources"][part]) == {"cpu", "memory"}
    allowed = service_container(kubernetes)["securityContext"]
    assert allowed["readOnlyRootFilesystem"] is compose["service"]["read_only"] is True
    assert allowed["allowPrivilegeEscalation"] is False
    pod = kubernetes["Deployment", "fewshot"]["spec"]["template"]["spec"]["securityContext"]
    assert instructions("USER") == [str(pod["runAsUser"])]  # the user of the image is the user of the pod


# ---- Ray Serve


def test_the_serve_configuration_is_one_that_serve_takes():
    from ray.serve.schema import ServeDeploySchema

    from fewshot.service import replicas

    config = ServeDeploySchema.model_validate(yaml.safe_load((DEPLOY / "serve.yaml").read_text()))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert module == replicas.__name__
    served = getattr(replicas, name)(application.args)
    (deployment,) = application.deployments
    assert deployment.name == served._bound_deployment.name
    scaling = deployment.autoscaling_config
    assert 1 <= scaling["min_replicas"] < scaling["max_replicas"]
    assert application.args["threads"] == deployment.ray_actor_options.num_cpus
    assert config.http_options.host == "127.0.0.1"


def test_commands_in_the_comments_are_the_program_s():
    for file in DEPLOY.iterdir():
        for words in re.findall(r"^# +fewshot (.+)$", file.read_text(), re.MULTILINE):
            command, *rest = words.split()
            with click.Context(main) as context:
                main.get_command(context, command).make_context(command, rest)
