"""deploy/compose.yaml is a compose file that docs, code and images agree with, and that gives nothing away."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from gateway.settings import Settings, check_names
from tests.deploy.engine import MODEL_SERVER
from tests.fakes import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*/Dockerfile"))
Json = dict[str, Any]
_VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")


def compose(name: str = "compose.yaml") -> Json:
    """Return a compose file with no variable set."""
    text = _VARIABLE.sub(r"\1", (DEPLOY / name).read_text())
    found: Json = yaml.safe_load(text)
    return found


SERVICES: dict[str, Json] = compose()["services"]
every_service = pytest.mark.parametrize("name", SERVICES)


def test_it_is_a_compose_file() -> None:
    """By the specification: no unknown key, no network or volume that nothing declares."""
    compose_spec.PyCompose.from_json(json.dumps(compose())).validate()


def test_a_misspelled_key_is_no_compose_file() -> None:
    """Else the test above could not fail."""
    wrong = compose()
    wrong["services"]["gateway"]["memry"] = "1g"
    with pytest.raises(ValueError, match="memry"):
        compose_spec.PyCompose.from_json(json.dumps(wrong))


@every_service
def test_nothing_runs_as_root_or_writes_its_image(name: str) -> None:
    """Who breaks in finds no rights, no file to change, no capability."""
    service = SERVICES[name]
    user, _, group = service["user"].partition(":")
    assert int(user) >= 400
    assert int(group) >= 400
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")


@every_service
def test_everything_has_limits_and_a_health_check(name: str) -> None:
    """One part must not take the host, and a hanging one must be seen."""
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory", "pids"}
    assert service["healthcheck"].keys() >= {"test", "interval", "timeout", "retries"}
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


@every_service
def test_images_have_a_version(name: str) -> None:
    """What runs today runs tomorrow."""
    _, colon, tag = SERVICES[name]["image"].rpartition(":")
    assert colon
    assert re.search(r"\d+\.\d+", tag)


@every_service
def test_ports_are_published_to_this_host_only(name: str) -> None:
    """Nothing here asks who is calling."""
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@every_service
def test_what_is_mounted_is_there_and_read_only(name: str) -> None:
    """Docker makes an empty folder of a path that is missing, and says nothing."""
    for mount in SERVICES[name].get("volumes", []):
        source, target, *mode = mount.split(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in compose()["volumes"], target


def test_prometheus_scrapes_services_that_are_there() -> None:
    """Its own configuration names the files; here are those of the containers."""
    ours = {path.name: path for path in (DEPLOY / "compose" / "targets").iterdir()}
    assert ours.keys() == {path.name for path in (DEPLOY / "prometheus" / "targets").iterdir()}
    aliases = {"triton", *SERVICES}
    for path in ours.values():
        for entry in yaml.safe_load(path.read_text()):
            assert {target.partition(":")[0] for target in entry["targets"]} <= aliases


def secure() -> Json:
    """Return what compose.secure.yaml changes of each service."""
    text = (DEPLOY / "compose.secure.yaml").read_text()
    services: Json = yaml.safe_load(text.replace("!override ", ""))["services"]
    return services


def test_the_open_gateway_asks_for_keys_over_tls() -> None:
    """The only ports that leave this host are those that ask who calls."""
    gateway = secure()["gateway"]
    check_names(dict.fromkeys(gateway["environment"], "x"))
    assert gateway["environment"].keys() >= {
        "BERTIER_API_KEYS_FILE",
        "BERTIER_TLS_CERTIFICATE",
        "BERTIER_TLS_KEY",
    }
    assert gateway["ports"] == ["8080:8080", "8081:8081"]
    assert [name for name, service in secure().items() if "ports" in service] == ["gateway"]


def test_the_open_gateway_is_watched_at_its_other_port() -> None:
    """Prometheus and the health check have no key."""
    port = secure()["gateway"]["environment"]["BERTIER_METRICS_PORT"]
    assert secure()["gateway"]["environment"]["BERTIER_METRICS_HOST"] == "0.0.0.0"
    assert f":{port}/readyz" in secure()["gateway"]["healthcheck"]["test"][-1]
    (mount,) = secure()["prometheus"]["volumes"]
    folder = DEPLOY / mount.split(":")[0]
    targets = yaml.safe_load((folder / "gateway.yml").read_text())
    assert targets == [{"targets": [f"gateway:{port}"]}]
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (DEPLOY / "prometheus" / "targets").iterdir()
    }


def test_triton_is_reached_through_the_gateway_only() -> None:
    """It has no authentication, and loads models for whoever asks."""
    networks = compose()["networks"]
    for name in ("triton", "triton-gpu"):
        assert "ports" not in SERVICES[name]
        assert all(networks[network]["internal"] for network in SERVICES[name]["networks"])


def test_each_profile_has_one_triton_under_one_name() -> None:
    """The gateway asks `triton:8001`, whichever runs."""
    profiles = [SERVICES[name]["profiles"] for name in ("triton", "triton-gpu")]
    assert profiles == [["cpu"], ["gpu"]]
    for name in ("triton", "triton-gpu"):
        assert SERVICES[name]["networks"]["models"]["aliases"] == ["triton"]
    (default,) = (DEPLOY / ".env").read_text().split()
    assert default == "COMPOSE_PROFILES=cpu"


def test_the_gateway_is_given_settings_that_exist() -> None:
    """A variable of no setting would end it at its start."""
    check_names(dict.fromkeys(SERVICES["gateway"]["environment"], "x"))
    dockerfile = (DEPLOY / "gateway" / "Dockerfile").read_text()
    check_names(dict.fromkeys(re.findall(r"BERTIER_\w+(?==)", dockerfile), "x"))


def test_the_gateway_is_given_the_time_it_needs_to_stop() -> None:
    """gRPC callers leave, both protocols drain one after the other, then Triton's connection closes."""
    fields = Settings.model_fields
    needed_s = (
        2 * fields["drain_ms"].default + fields["grpc_connection_age_ms"].default
    ) / 1e3 + 20
    assert SERVICES["gateway"]["stop_grace_period"] == f"{needed_s:g}s"


@pytest.mark.parametrize("name", ["triton", "triton-gpu"])
def test_triton_is_the_one_that_the_repository_is_checked_for(name: str) -> None:
    """Models and image go together."""
    assert SERVICES[name]["image"] == MODEL_SERVER.image


def test_the_dockerfiles_pass_the_linter() -> None:
    """Hadolint knows more traps than we do."""
    found = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), *DOCKERFILES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_every_builder_reads_the_dockerfiles_alike(path: Path) -> None:
    """Docker 20.10 ignores a symbolic mode, Buildah stops at it; a frontend is an image more."""
    lines = path.read_text().splitlines()
    modes = [mode for line in lines for mode in re.findall(r"--chmod=(\S+)", line)]
    assert all(re.fullmatch("[0-7]{3,4}", mode) for mode in modes)
    assert not any(re.match(r"#\s*syntax\s*=", line) for line in lines)


def test_the_dockerfile_copies_only_what_docker_is_sent() -> None:
    """A path that .dockerignore leaves out ends the build."""
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    dockerfile = (DEPLOY / "gateway" / "Dockerfile").read_text()
    copied = {
        path
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE)
        for path in line.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / path).exists() for path in sent)


def test_the_images_program_is_the_install_script_of_the_tests() -> None:
    """What test_gateway_image runs in a clean environment is what the image is made of."""
    dockerfile = (DEPLOY / "gateway" / "Dockerfile").read_text()
    assert "RUN deploy/gateway/install.sh /opt/bertier" in dockerfile
    assert "COPY --from=build /opt/bertier /opt/bertier" in dockerfile
