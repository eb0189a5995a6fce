"""What launch/ starts: clean scripts, manifests that the API knows, processes that meet."""

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import jaxdefense
from jaxdefense.buckets.places import is_address
from jaxdefense.commands import COMMANDS

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
MANIFESTS = sorted(LAUNCH.glob("jobset_*.yaml"))
DOCKERFILE, SKYPILOT = LAUNCH / "Dockerfile", LAUNCH / "skypilot.yaml"
FILES = [*SCRIPTS, *MANIFESTS, DOCKERFILE, SKYPILOT]
SCHEMA = json.loads((ROOT / "tests/jobset_schema.json").read_text())


def names(paths):
    return [path.name for path in paths]


def linted(program, path):
    """What a linter says of a file; pip puts the program beside this Python."""
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.defpath}")
    if not found:
        pytest.skip(f"no {program}")
    done = subprocess.run([found, path], capture_output=True, text=True)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.parametrize("path", SCRIPTS, ids=names(SCRIPTS))
def test_script_is_clean(path):
    assert not linted("shellcheck", path)


def test_dockerfile_is_clean(tmp_path):
    assert not linted("hadolint", DOCKERFILE)
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text().replace("WORKDIR /code", "WORKDIR code"))
    assert "DL3000" in linted("hadolint", wrong)


def test_dockerfile_copies_what_a_wheel_is_made_of_and_names_extras_that_exist():
    text = DOCKERFILE.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {word for x in re.findall("^COPY (.*) ", text, re.M) for word in x.split()}
    assert all((ROOT / name).exists() for name in copied)
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {*wheel["packages"], *wheel["force-include"]} <= copied
    named = re.search(r"EXTRA: (.*?),? and", text)
    assert named
    extras = re.split(r", | or ", named[1])
    assert {"cpu", "cuda12", "cuda13", "tpu"} == {*extras}
    assert {*extras} <= project["project"]["optional-dependencies"].keys()
    assert "ARG EXTRA=cpu" in text


@pytest.mark.slow
def test_image_is_built_and_says_its_version():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("no docker that runs")
    built = [docker, "build", "-q", "-f", DOCKERFILE, "."]
    image = subprocess.run(built, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = [docker, "run", "--rm", image.strip(), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == jaxdefense.__version__


@pytest.mark.parametrize("path", FILES, ids=names(FILES))
def test_file_says_what_how_and_what_to_change(path):
    lines = path.read_text().splitlines()
    header = lines[1:] if lines[0].startswith("#!") else lines
    assert [line.split()[1] for line in header[:3]] == ["What:", "Run:", "Change:"]
    assert not header[3].startswith("# "), "three lines, no more"


@pytest.mark.parametrize("path", MANIFESTS, ids=names(MANIFESTS))
def test_manifest_has_fields_that_the_api_knows(path):
    manifest = yaml.safe_load(path.read_text())
    jsonschema.validate(manifest, SCHEMA)
    (job,) = [one["template"]["spec"] for one in manifest["spec"]["replicatedJobs"]]
    assert job["parallelism"] == job["completions"], "all processes run at once"
    assert job["completionMode"] == "Indexed", "the index says which process this is"
    # A wrong input ends it, as the JobSet knows by the reason; anything else is tried again.
    (wrong,), (ends,) = job["podFailurePolicy"]["rules"], manifest["spec"]["failurePolicy"]["rules"]
    assert wrong == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    assert (ends["action"], ends["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    pod = job["template"]["spec"]
    mounted = {mount["name"] for c in pod["containers"] for mount in c["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    env = {x["name"]: x["value"] for c in pod["containers"] for x in c.get("env", [])}
    if "JAX_NUM_PROCESSES" in env:
        assert env["JAX_NUM_PROCESSES"] == str(job["parallelism"])


@pytest.mark.parametrize("path", MANIFESTS, ids=names(MANIFESTS))
def test_manifest_starts_a_command_that_exists(path):
    manifest = yaml.safe_load(path.read_text())
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    program, *command = pod["containers"][0]["command"] + pod["containers"][0]["args"]
    assert program == "jaxdefense"
    assert any(arg.startswith("--config=") for arg in command)
    COMMANDS[" ".join(command[:2])].read(command[2:])  # the config file is read too


def test_manifest_of_a_bucket_asks_for_the_driver_that_mounts_it():
    manifest = yaml.safe_load((LAUNCH / "jobset_tpu.yaml").read_text())
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,) = pod["spec"]["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"]
    assert pod["spec"]["serviceAccountName"]


def test_skypilot_starts_a_process_a_node(tmp_path):
    task = yaml.safe_load(SKYPILOT.read_text())
    known = {"name", "num_nodes", "workdir", "resources", "setup", "run"}
    assert task.keys() == known
    program = tmp_path / "jaxdefense/bin/jaxdefense"
    write_program(program, 'printf "%s\\n" "$@"')
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    env = os.environ | nodes | {"SKYPILOT_NODE_RANK": "1", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", task["run"]], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    command = done.stdout.splitlines()
    cfg = COMMANDS[" ".join(command[:2])].read(command[2:])
    # A mounted bucket neither renames nor locks; an address needs neither, but one local cache.
    assert is_address(cfg.out) and task["num_nodes"] == 1
    assert ",s3]" in task["setup"]
    how = cfg.distributed
    assert (how.coordinator, how.num_processes, how.process_id) == ("10.0.0.1:8476", 2, 1)


@pytest.mark.parametrize(
    "path, value",
    [
        (["spec", "replicatedJob"], []),
        (["spec", "failurePolicy", "maxRestart"], 3),
        (["spec", "replicatedJobs", 0, "template", "spec", "completionMode"], "indexed"),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "nodeselector"], {}),
        (["apiVersion"], "jobset.x-k8s.io/v1alpha1"),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "annotations"], {}),
    ],
)
def test_schema_refuses_what_the_api_does_not_know(path, value):
    manifest: Any = yaml.safe_load(MANIFESTS[0].read_text())
    jsonschema.validate(manifest, SCHEMA)
    at = broken = copy.deepcopy(manifest)
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


_PROCESS = """
import os, jax, jax.numpy as jnp
jax.distributed.initialize(
    os.environ["JAX_COORDINATOR_ADDRESS"],
    int(os.environ["JAX_NUM_PROCESSES"]),
    int(os.environ["JAX_PROCESS_ID"]),
)
from jax.experimental.multihost_utils import process_allgather
told = process_allgather(jnp.array(jax.process_index()))
# In one piece: others write to the same pipe.
os.write(1, f"told {sorted(told.tolist())} {jax.device_count()}\\n".encode())
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def local_cpu(*command, **env):
    return subprocess.run(
        [LAUNCH / "local_cpu.sh", *command],
        env={**os.environ, "PORT": str(free_port()), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_local_cpu_joins_processes_over_loopback():
    done = local_cpu(sys.executable, "-c", _PROCESS, NUM="2", DEVICES="3")
    assert not done.returncode, done.stderr
    assert re.findall("told.*", done.stdout) == ["told [0, 1] 6"] * 2


def test_local_cpu_gives_the_worst_exit_code():
    done = local_cpu("bash", "-c", "exit $((JAX_PROCESS_ID * 2))", NUM="3")
    assert done.returncode == 4


def one_host(tmp_path, codes, **env):
    """Run one_host.sh with a program that ends with these codes in turn; its runs, exit code."""
    program = tmp_path / "program"
    program.write_text(
        '#!/bin/bash\necho "$*" >>runs\n'
        f"codes=({' '.join(map(str, codes))})\n"
        'exit "${codes[$(wc -l <runs) - 1]}"\n'
    )
    program.chmod(0o755)
    done = subprocess.run(
        [LAUNCH / "one_host.sh", "attack", "--out", "o"],
        env={**os.environ, "JAXDEFENSE": str(program), "PAUSE": "0", **env},
        cwd=tmp_path,
        capture_output=True,
    )
    runs = (tmp_path / "runs").read_text().splitlines()
    assert {*runs} == {"attack --out o"}  # any command, as it was given
    return len(runs), done.returncode


def test_one_host_goes_on_after_a_crash(tmp_path):
    assert one_host(tmp_path, [1, 0]) == (2, 0)


@pytest.mark.parametrize("code", [0, 2, 143])
def test_one_host_does_not_repeat_what_would_end_the_same(tmp_path, code):
    assert one_host(tmp_path, [code, 0]) == (1, code)


def test_one_host_tells_how_a_finished_run_ended(tmp_path):
    """A defense that was not reached is finished: to start it again is refused."""
    assert one_host(tmp_path, [1, 2, 0]) == (2, 1)


def test_one_host_gives_up(tmp_path):
    assert one_host(tmp_path, [1, 1, 1, 0], RETRIES="1") == (2, 1)


@pytest.mark.parametrize("parts, part", [({}, "3/5"), ({"PARTS": "9"}, "3/9")])
def test_sweep_under_slurm_gives_each_job_its_part(tmp_path, monkeypatch, parts, part):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "5", **parts}
    slurm |= {"SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = LAUNCH / "slurm_sweep.sbatch"
    header = script.read_text().splitlines()[2]
    asked = header.partition("slurm_sweep.sbatch ")[2].split()
    done = subprocess.run(
        ["bash", script, *asked],
        env=os.environ | slurm,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    program, *command = done.stdout.splitlines()
    assert program.endswith("/bin/jaxdefense")
    monkeypatch.chdir(ROOT)
    assert COMMANDS[" ".join(command[:2])].read(command[2:]).sweep.part == part


def write_program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("has_uv", [True, False])
def test_tpu_vm_brings_python_and_runs_what_it_is_given(tmp_path, has_uv):
    """Here the host is this one: `gcloud` runs what it would send."""
    programs, home = tmp_path / "programs", tmp_path / "home"
    write_program(programs / "gcloud", 'echo "$*" >asked; exec bash -c "${!##--command=}"')
    script = 'echo "uv $*" >>"$HOME/installed"; mkdir -p "$HOME/.venv/bin"\n'
    script += 'cp "$HOME/program" "$HOME/.venv/bin/jaxdefense"'
    write_program(home / "program", 'printf "%s\\n" "$@"')
    uv = programs / "uv" if has_uv else home / ".local/bin/uv"
    write_program(uv, script)
    write_program(programs / "python3", 'echo "python3 $*" >>"$HOME/installed"')
    env = {"HOME": str(home), "PATH": f"{programs}:{os.defpath}", "CODE": str(tmp_path)}
    env |= {"TPU": "t", "ZONE": "z"}
    given = ["defend", "text", "--set", "train.target=a person", "--out", "o'o"]
    for _ in range(2):
        done = subprocess.run(
            [LAUNCH / "tpu_vm.sh", *given], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
        assert done.stdout.splitlines() == given
    assert "--worker=all" in (tmp_path / "asked").read_text()
    installed = (home / "installed").read_text().splitlines()  # once
    without = ["python3 -m pip install -q --user uv"] * (not has_uv)
    assert installed[:-1] == [*without, f"uv venv -q --allow-existing --python 3.12 {home}/.venv"]
    assert installed[-1] == f"uv pip install -q --python {home}/.venv/bin/python .[tpu]"


def test_tpu_vm_says_what_it_lacks():
    missing = subprocess.run(
        [LAUNCH / "tpu_vm.sh"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert missing.returncode and "name of the slice" in missing.stderr
