"""`mdrelax config`: a template that explains every key, a check of a config file, and the JSON schema."""

import json
from typing import Annotated

import typer

app = typer.Typer(help="Write, check and document config files.", no_args_is_help=True)


@app.command()
def template(
    network: Annotated[str, typer.Option(help="The network whose arguments are shown.")] = "equiformer",
) -> None:
    """Print a config with every key, its default and its meaning; the network's own arguments as comments."""
    from mdrelax import potentials
    from mdrelax.base.sections import section_of
    from mdrelax.runs.config import Config, PotentialConfig

    preset = {**potentials.preset(network, PotentialConfig.model_fields["preset"].default)}
    arguments = potentials.arguments_section(network).model_fields
    for name, field in Config.model_fields.items():
        section = section_of(field.annotation)
        if section is None or field.default is None:
            typer.echo(_line(name, field))
            for key, entry in (section.model_fields if section else {}).items():
                typer.echo("#   " + _line(key, entry))
            continue
        typer.echo(f"{name}:")
        for key, entry in section.model_fields.items():
            chosen = network if (name, key) == ("potential", "name") else None
            typer.echo("  " + _line(key, entry, chosen))
            if (name, key) == ("potential", "arguments"):
                for argument, meaning in arguments.items():
                    typer.echo("  #   " + _line(argument, meaning, preset.get(argument)))


def _line(name: str, field: object, value: object = None) -> str:
    """One key of the template with its default or another value; keys that must be set have none."""
    import yaml
    from pydantic.fields import FieldInfo
    from pydantic_core import PydanticUndefined

    assert isinstance(field, FieldInfo)  # noqa: S101 - for the type checker
    if field.default is PydanticUndefined and field.default_factory is None:
        return f"{name}: # REQUIRED. {field.description}"
    default = field.get_default(call_default_factory=True)
    shown = default if value is None else value
    text = json.dumps(list(shown) if isinstance(shown, tuple) else shown)
    return f"{name}: {yaml.safe_load(text) if isinstance(shown, str) else text}  # {field.description}"


@app.command()
def validate(
    config: Annotated[str, typer.Argument(help="A YAML file or the name of a preset.")],
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value")] = None,
) -> None:
    """Check a config and print it with every default filled in."""
    import yaml

    from mdrelax import potentials
    from mdrelax.runs.inputs import open_config
    from mdrelax.runs.network import check_network

    settings = open_config(config, override or [])
    check_network(settings.potential, potentials)
    typer.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


@app.command()
def schema() -> None:
    """Print the JSON schema, for editors."""
    from mdrelax.runs.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))
