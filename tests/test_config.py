"""The config: what it accepts, what it fills in, and errors that name the key, the value and the remedy."""

import copy
import json

import pytest
import yaml

from command_line import mdrelax
from mdrelax import potentials
from mdrelax.base.sections import ConfigError, read_yaml
from mdrelax.runs.config import Config, PotentialConfig, load_config
from mdrelax.runs.config_changes import read_saved
from mdrelax.runs.network import arguments_of
from mdrelax.training.folders import changed_keys

SMALLEST = {"data": {"source": "frames.extxyz"}, "training": {"steps": 10}}


def with_key(section: str, key: str, value: object) -> dict:
    """The smallest config with one key more."""
    return {**SMALLEST, section: {**SMALLEST.get(section, {}), key: value}}


def test_one_key_is_enough():
    """Where the data is; everything else has a default, the paper's relaxation among them."""
    config = load_config({"data": {"source": "frames.extxyz"}})
    assert config.training.steps == 3000
    assert config.potential.preset == "tiny"
    assert (config.relaxation.schedule, config.relaxation.weight) == ("triangle", 0.01)
    assert config.training.dtype == "float32"


def test_a_resolved_config_resolves_to_itself():
    """config.yaml of a run holds every default and gives the same config again."""
    config = load_config(SMALLEST)
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert load_config(yaml.safe_load(text)) == config


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [
        ("training", "learning_rte", "learning_rate"),
        ("data", "sorce", "source"),
        ("potential", "cutof", "cutoff"),
        ("relaxation", "shedule", "schedule"),
    ],
)
def test_an_unknown_key_names_the_nearest(section, key, nearest):
    """A misspelt key never trains silently."""
    with pytest.raises(ConfigError, match=rf"Unknown config key `{section}\.{key}`; did you mean `{nearest}`\?"):
        load_config(with_key(section, key, 1))


def test_a_number_is_not_true_or_false():
    """`batch_size: true` was a batch of one."""
    with pytest.raises(ConfigError, match=r"`training\.batch_size`: input should be a number, got True"):
        load_config({"data": {"source": "x"}, "training": {"batch_size": True}})


def test_an_unknown_section_names_the_nearest():
    """At the top level too."""
    with pytest.raises(ConfigError, match=r"Unknown config key `trainig`; did you mean `training`\?"):
        load_config({**SMALLEST, "trainig": {}})


@pytest.mark.parametrize("training", [{"steps": None}, {"steps": 10, "epochs": 2}])
def test_steps_and_epochs_exclude_each_other(training):
    """The length of a run is said once; epochs replace the steps that nobody named."""
    assert load_config({**SMALLEST, "training": {"epochs": 2}}).training.steps is None
    with pytest.raises(ConfigError, match="`training`: give either `steps` or `epochs`, got"):
        load_config({**SMALLEST, "training": training})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("potential", "cutoff", 0),
        ("potential", "cutoff", -1.0),
        ("potential", "cutoff", float("inf")),
        ("potential", "cutoff", float("nan")),
        ("training", "batch_size", 0),
        ("training", "steps", 2.5),
        ("training", "learning_rate", "fast"),
        ("training", "loss", "l3"),
        ("training", "optimizer", "adamm"),
        ("training", "ema", 1.0),
        ("training", "warmup_steps", -0.1),
        ("training", "validate_every", 0),
        ("relaxation", "peak", 1.5),
        ("relaxation", "schedule", "triangel"),
        ("data", "train", -3),
        ("data", "train", "many"),
    ],
)
def test_an_impossible_value_is_quoted_with_its_key(section, key, value):
    """One line: the key, what is allowed, and what was given."""
    with pytest.raises(ConfigError) as caught:
        load_config(with_key(section, key, value))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"`{section}.{key}`: ")
    assert line.endswith(f", got {value!r}.")


def test_every_mistake_is_reported_at_once():
    """Nobody likes to correct a file five times."""
    with pytest.raises(ConfigError) as caught:
        load_config({"data": {"sorce": 1}, "training": {"steps": 10, "batch_size": 0}})
    text = str(caught.value)
    assert "`data.sorce`" in text
    assert "`data.source` is missing" in text
    assert "`training.batch_size`" in text


def test_the_cutoff_is_said_once():
    """A cut-off among the network's arguments would not reach the neighbour lists."""
    with pytest.raises(ConfigError, match=r"set `potential\.cutoff` instead"):
        load_config(with_key("potential", "arguments", {"cutoff": 6.0}))


def test_some_label_must_count():
    """Three weights of zero train nothing."""
    zeros = {"steps": 10, "energy_weight": 0, "forces_weight": 0}
    with pytest.raises(ConfigError, match="must be above 0"):
        load_config({**SMALLEST, "training": zeros})


def test_a_bare_off_is_the_schedule_off():
    """YAML reads `off` as false."""
    assert load_config(yaml.safe_load("{data: {source: a}, training: {steps: 1}, relaxation: {schedule: off}}"))
    config = load_config(SMALLEST, overrides=["relaxation.schedule=off"])
    assert config.relaxation.schedule == "off"


def test_overrides_are_yaml():
    """Numbers, words, lists, nothing, and keys at any depth; the document that was handed in stays as it was."""
    document = with_key("potential", "arguments", {"n_blocks": 1})
    config = load_config(
        document,
        overrides=[
            "training.learning_rate=1e-3",
            "training.early_stopping=null",
            "potential.arguments.n_blocks=3",
            "relaxation.where=[a, b]",
            "standard_baseline=true",
        ],
    )
    assert config.training.learning_rate == 1e-3
    assert config.training.early_stopping is None
    assert config.potential.arguments == {"n_blocks": 3}
    assert config.relaxation.where == ["a", "b"]
    assert config.standard_baseline
    assert document["potential"]["arguments"] == {"n_blocks": 1}


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("training.steps", r"section\.key=value"),
        ("training.steps.more=1", "`steps` is not a section"),
        ("training.stepps=1", "did you mean `steps`"),
        ("training.betas=[0.9", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused(override, match):
    """With the override in the sentence."""
    with pytest.raises(ConfigError, match=match):
        load_config(SMALLEST, overrides=[override])


def test_an_empty_section_in_a_file_can_be_overridden():
    """`training:` with nothing under it is an empty section."""
    config = load_config({"data": {"source": "a"}, "training": None}, overrides=["training.steps=3"])
    assert config.training.steps == 3


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty or not a mapping"),
        (b"- a\n- b\n", "empty or not a mapping"),
        (b"a: [1, 2", "not valid YAML"),
        (b"\xff\xfe\x00\x81", "not a text file|not valid YAML"),
        (b"!!python/object/apply:os.mkdir [sprung]", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, monkeypatch, content, match):
    """And what it holds is never run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        read_yaml(tmp_path / "c.yaml")
    assert not (tmp_path / "sprung").exists()


def test_changed_keys_say_what_changed():
    """One line a key, with its section and both values."""
    old = load_config(SMALLEST).model_dump(mode="json")
    new = load_config(SMALLEST, overrides=["training.seed=3", "potential.arguments.n_blocks=2"]).model_dump(mode="json")
    assert changed_keys(old, old) == []
    assert changed_keys(old, new) == [
        "potential.arguments: {} -> not set",
        "potential.arguments.n_blocks: not set -> 2",
        "training.seed: 0 -> 3",
    ]


def test_how_a_constraint_would_be_relaxed_is_no_change_of_a_standard_run():
    """A standard run of an older recipe is one of a newer recipe too, if these differ in the relaxation only."""
    off, on = ["relaxation.schedule=off"], ["relaxation.peak=0.5"]
    standard, other, relaxed = (
        load_config(SMALLEST, overrides=keys).model_dump(mode="json") for keys in (off, [*off, *on], on)
    )
    assert changed_keys(standard, other) == []
    assert changed_keys(standard, relaxed) == ["relaxation.peak: 1.0 -> 0.5", "relaxation.schedule: off -> triangle"]


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_the_template_is_a_config_once_its_required_keys_are_filled(tmp_path):
    """Valid YAML with every key there is; with a source filled in, the defaults and nothing else."""
    said = mdrelax("config", "template")
    assert said.code == 0
    content = yaml.safe_load(said.out)
    for name, field in Config.model_fields.items():
        assert name in content
        if fields := getattr(field.annotation, "model_fields", None):
            assert set(fields) <= set(content[name])
    required = [line.split(":")[0].strip() for line in said.out.splitlines() if "REQUIRED" in line]
    assert required == ["source"]
    content["data"]["source"], content["training"]["steps"] = "frames.extxyz", 10
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    validated = mdrelax("config", "validate", tmp_path / "c.yaml")
    assert validated.code == 0
    assert load_config(yaml.safe_load(validated.out)) == load_config(SMALLEST)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "The config key `data.source` is missing; `mdrelax config template` shows all keys."),
        ("3", "`data.source`: input should be a valid string, got 3."),
        ("{a: 1}", "`data.source`: input should be a valid string, got {'a': 1}."),
    ],
)
def test_a_template_whose_source_is_not_filled_in_is_one_sentence(given, sentence, tmp_path):
    """The key may be a name or a list of names; pydantic tells of each alternative."""
    template = mdrelax("config", "template").out.splitlines()
    lines = [f"  source: {given}" if "REQUIRED" in line else line for line in template]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    for verb in (["config", "validate"], ["train"]):
        said = mdrelax(*verb, tmp_path / "c.yaml")
        assert (said.code, said.err.strip()) == (2, sentence)


def test_the_template_explains_every_key():
    """Each line of a key has its sentence beside it."""
    lines = [line for line in mdrelax("config", "template").out.splitlines() if not line.endswith(":")]
    assert all("#" in line and line.rstrip().endswith((".", ")")) for line in lines)


@pytest.mark.parametrize("network", potentials.POTENTIALS)
def test_the_template_shows_the_arguments_of_each_network(network, tmp_path):
    """With the values of the preset; uncommented they are valid and change nothing."""
    lines = mdrelax("config", "template", "--network", network).out.splitlines()
    start = lines.index("  arguments: {}  # Arguments that replace the preset's.") + 1
    shown = yaml.safe_load(
        "\n".join(line.removeprefix("  #   ") for line in lines[start:] if line.startswith("  #   "))
    )
    assert set(shown) == set(potentials.arguments_section(network).model_fields)
    settings = PotentialConfig(name=network, arguments=shown)
    expected = arguments_of(PotentialConfig(name=network), potentials)
    found = arguments_of(settings, potentials)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("potential.name=equiformr", "There is no potential `equiformr`; did you mean `equiformer`?"),
        ("potential.preset=smal", "`equiformer` has no preset `smal`; did you mean `small`?"),
        ("potential.arguments.n_blokcs=3", "`potential.arguments.n_blokcs`; did you mean `n_blocks`?"),
        ("potential.arguments.n_blocks=two", "`potential.arguments.n_blocks`: input should be a valid integer"),
        ("potential.arguments.norm=joined", "`potential.arguments.norm`: input should be 'joint' or 'separable'"),
        ("potential.arguments.n_blocks=0", "`n_blocks` must be at least 1, got 0."),
        ("potential.arguments.n_heads=3", "a positive multiple of n_heads=3"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_before_the_data_are_read(override, sentence, tmp_path):
    """By `config validate` and by `train`, whose data file does not exist: name, preset, key, type, choice, range."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**SMALLEST, "data": {"source": str(tmp_path / "no.extxyz")}}))
    for verb, options in ((["config", "validate"], []), (["train"], ["--out", tmp_path / "run"])):
        said = mdrelax(*verb, tmp_path / "c.yaml", "-r", override, *options)
        assert said.code != 0
        assert sentence in said.err
        assert len(said.err.strip().splitlines()) == 1


@pytest.mark.parametrize("network", potentials.POTENTIALS)
def test_every_argument_of_a_network_has_a_type_and_a_sentence(network):
    """The presets are valid in the section that is made from the constructor."""
    section = potentials.arguments_section(network)
    assert all(field.description and field.description.endswith(".") for field in section.model_fields.values())
    for name in potentials.PRESETS[network]:
        assert section.model_validate(potentials.preset(network, name)).model_fields_set


def test_validate_fills_in_defaults_and_overrides(tmp_path):
    """What is printed is what would be trained."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(SMALLEST))
    said = mdrelax("config", "validate", tmp_path / "c.yaml", "-r", "training.seed=7")
    assert yaml.safe_load(said.out) == load_config(SMALLEST, overrides=["training.seed=7"]).model_dump(mode="json")


@pytest.mark.parametrize("preset", ["ethanol-tiny", "nbody-charged", "rmd17-ethanol", "silicon"])
def test_the_presets_are_valid_and_of_the_best_known_recipe(preset):
    """Everything that ships can be trained by its name, by the optimiser that docs/training.md found best."""
    said = mdrelax("config", "validate", preset)
    assert said.code == 0
    training = yaml.safe_load(said.out)["training"]
    assert (training["optimizer"], training["betas"]) == ("muon", [0.98, 0.99])


def test_the_schema_describes_every_section():
    """A JSON schema for editors, which knows the keys and forbids others."""
    schema = json.loads(mdrelax("config", "schema").out)
    assert set(schema["properties"]) == set(Config.model_fields)
    training = schema["$defs"]["TrainingConfig"]
    assert training["additionalProperties"] is False
    assert all("description" in entry for entry in training["properties"].values())


def test_a_saved_config_gets_the_defaults_of_newer_keys(tmp_path):
    """A run of an older version goes on; one whose keys are unknown now is compared as it stands."""
    config = load_config(SMALLEST).model_dump(mode="json")
    older = copy.deepcopy(config)
    del older["training"]["ema"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(older))
    assert read_saved(path) == config
    older["training"]["gone"] = 1
    path.write_text(yaml.safe_dump(older))
    assert read_saved(path) == older
