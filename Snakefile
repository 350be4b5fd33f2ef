# The DAG of one reproduction: stages of a portrait, then one papermill run for each target.
# `talk3d reproduce` writes the run's config and keys and calls Snakemake; each rule depends on a
# key file, which changes only when what it stands for changes, never on the times of code files.
from pathlib import Path

DIR, OUT = Path(config["folder"]), Path(config["out_dir"])
PYTHON = config["python"]
TALK3D = f"{PYTHON!r} -m talk3d.cli"
RUN = f"--profile {config['profile']} --seed {config['seed']} --device {config['device']}"
GPU = 0 if config["device"] == "cpu" else 1  # one machine runs one stage with a GPU at a time
# Where nothing starts from a prior, a control or a restorer of another profile fits nobody.
CLEAR = "" if config["networks"] != "none" else "rm -rf {DIR:q}/no-prior {DIR:q}/restorer && "


def key(name):
    return str(DIR / "keys" / f"{name}.json")


def done(name):
    return str(DIR / "done" / f"{name}")


rule all:
    input:
        [str(OUT / f"{target}.json") for target in config["targets"]],
        [done("evaluate")] if config["evaluate"] else [],


if not config["clip"]:

    rule world:
        input: key("world")
        output: touch(done("source"))
        threads: 2
        shell: "{TALK3D} assets world {DIR:q} --profile {config[profile]}"

else:

    rule clip:
        input: key("clip")
        output: touch(done("source"))
        shell: ":"


rule preprocess:
    input: key("preprocess"), done("source")
    output: touch(done("preprocess"))
    params:
        resample="--resample" if config["resample"] else "",
    shell:
        "{TALK3D} preprocess {config[video]:q} {DIR:q} --landmarks {config[landmarks]:q}"
        " --profile {config[profile]} {params.resample}"


rule personalize:
    input: key("personalize"), done("preprocess")
    output: touch(done("personalize"))
    threads: 2
    resources: gpu=GPU
    shell: CLEAR + "OMP_NUM_THREADS={threads} {TALK3D} personalize {DIR:q} {RUN}"


rule train:
    input: key("train"), done("personalize")
    output: touch(done("train"))
    threads: 2
    resources: gpu=GPU
    shell: "OMP_NUM_THREADS={threads} {TALK3D} train {DIR:q} {RUN}"


rule control:
    input: key("control"), done("personalize")
    output: touch(done("control"))
    threads: 2
    resources: gpu=GPU
    shell:
        "export OMP_NUM_THREADS={threads}; {TALK3D} personalize {DIR:q} --no-prior {RUN}"
        " && {TALK3D} train {DIR:q} --no-prior {RUN}"


rule restorer:
    input: key("restorer"), done("train")
    output: touch(done("restorer"))
    threads: 2
    resources: gpu=GPU
    shell:
        "OMP_NUM_THREADS={threads} {TALK3D} train {DIR:q} --restorer {config[networks]} {RUN}"


rule ablation:
    input: key("ablations"), done("personalize")
    output: touch(done("ablation-{row}-{seed}"))
    params: row=lambda wildcards: config["rows"][int(wildcards.row)]
    wildcard_constraints: row=r"\d+", seed=r"\d+"
    resources: gpu=GPU
    shell:
        "OMP_NUM_THREADS=1 {TALK3D} ablate {DIR:q} --row {params.row:q} --seed {wildcards.seed}"
        " --profile {config[profile]} --device {config[device]}"


rule ablations:
    input: key("ablations"), done("personalize"),
        [done(f"ablation-{k}-{seed}") for k, _ in enumerate(config["rows"]) for seed in config["seeds"]],
    output: touch(done("ablations"))
    shell:
        "{TALK3D} ablate {DIR:q} --out {OUT:q}/ablations.json --profile {config[profile]}"
        " --device {config[device]}"


rule evaluate:
    input: key("evaluate"), done("train")
    output: touch(done("evaluate"))
    threads: 2
    resources: gpu=GPU
    shell: "OMP_NUM_THREADS={threads} {TALK3D} evaluate {DIR:q} {RUN}"


for target, entry in config["targets"].items():

    rule:
        name: target
        input: key(target), [done(stage) for stage in entry["needs"]]
        output: str(OUT / f"{target}.json")
        params:
            notebook=entry["notebook"],
            executed=str(OUT / "notebooks" / Path(entry["notebook"]).name),
            arguments=key(f"{target}.parameters"),
        shell:
            "mkdir -p {OUT:q}/notebooks && OMP_NUM_THREADS=1 {PYTHON:q} -m papermill"
            " {params.notebook:q} {params.executed:q} -f {params.arguments:q} -k python3"
            " --no-progress-bar --log-level WARNING"
