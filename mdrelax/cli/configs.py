"""`mdrelax config`: a template with every key explained, a check of one's own file, and the JSON schema."""

import json
from typing import Annotated

import typer

app = typer.Typer(help="Write, check and document config files.", no_args_is_help=True)


@app.command()
def template() -> None:
    """Print a config with every key, its default and its meaning."""
    from mdrelax.runs.config import Config

    for name, field in Config.model_fields.items():
        sections = getattr(field.annotation, "model_fields", None)
        if sections is None:
            typer.echo(_line(name, field))
            continue
        typer.echo(f"{name}:")
        for key, entry in sections.items():
            typer.echo("  " + _line(key, entry))


def _line(name: str, field: object) -> str:
    """One key of the template; keys that must be chosen are comments without a value."""
    import yaml
    from pydantic.fields import FieldInfo
    from pydantic_core import PydanticUndefined

    assert isinstance(field, FieldInfo)  # noqa: S101 - for the type checker
    if field.default is PydanticUndefined and field.default_factory is None:
        return f"{name}: # REQUIRED. {field.description}"
    default = {} if field.default is PydanticUndefined else field.default
    value = json.dumps(list(default) if isinstance(default, tuple) else default)
    return f"{name}: {yaml.safe_load(value) if isinstance(default, str) else value}  # {field.description}"


@app.command()
def validate(
    config: Annotated[str, typer.Argument(help="A YAML file or the name of a preset.")],
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value")] = None,
) -> None:
    """Check a config and print it with every default filled in."""
    import yaml

    from mdrelax.runs.inputs import open_config

    typer.echo(yaml.safe_dump(open_config(config, override or []).model_dump(mode="json"), sort_keys=False))


@app.command()
def schema() -> None:
    """Print the JSON schema, for editors."""
    from mdrelax.runs.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))
