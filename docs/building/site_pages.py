"""What the site has that no page is written for: the public names, the configuration, the command line, the schemas.

MkDocs calls these functions while it builds (`hooks` in mkdocs.yml), so that nothing of it can be out of date.
"""

from __future__ import annotations

import ast
import contextlib
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

API: dict[str, tuple[str, ...]] = {
    "Compress and restore": ("ilwp_plugin", "ilwp_plugin.config", "ilwp_plugin.hub", "ilwp_plugin.errors"),
    "Training": ("ilwp_plugin.training",),
    "Toolkits": (
        "ilwp_integrations.nncf",
        "ilwp_integrations.neural_compressor",
        "ilwp_integrations.torch_pruning",
        "ilwp_integrations.onnx",
        "ilwp_integrations.openvino",
        "ilwp_plugin.toolkits",
    ),
    "Files": ("ilwp_plugin.format", "ilwp_plugin.format.coding", "ilwp_plugin.ledger"),
    "Analysis and comparison": ("ilwp_plugin.analysis", "ilwp_plugin.compare", "ilwp_plugin.zoo", "ilwp_plugin.demo"),
    "Extending": (
        "ilwp_plugin.recipes.base",
        "ilwp_plugin.registry",
        "ilwp_plugin.plugins",
        "ilwp_plugin.models.network",
        "ilwp_plugin.models.chains",
        "ilwp_plugin.testing",
    ),
    "The method": (
        "ilwp_plugin.method.prediction",
        "ilwp_plugin.method.quantization",
        "ilwp_plugin.method.loss",
        "ilwp_plugin.method.alignment",
        "ilwp_plugin.method.error_feedback",
        "ilwp_plugin.method.allocation",
        "ilwp_plugin.method.grid",
        "ilwp_plugin.method.batch_norm",
        "ilwp_plugin.method.provenance",
    ),
}
"""Pages of public names: title, and the modules whose `__all__` it shows; those that do not exist are left out."""

ELSEWHERE = {
    "FORMAT.md": "reference/format.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files beside docs that have a page of their own."""


def source_of(module: str) -> Path | None:
    """The file of a module of ours; None where there is none."""
    parts = module.replace("ilwp_integrations", "integrations").split(".")
    for path in (ROOT.joinpath(*parts, "__init__.py"), ROOT.joinpath(*parts).with_suffix(".py")):
        if path.exists():
            return path
    return None


def public_names(module: str) -> list[str]:
    """What `__all__` of a module lists, without importing it: its toolkit need not be installed."""
    path = source_of(module)
    assert path is not None, module
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AugAssign) and getattr(targets[0], "id", "") == "__all__":
            names += [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
    return names


def slug(title: str) -> str:
    """A title as the name of a file."""
    return title.lower().replace(" ", "_")


def api_page(title: str, modules: tuple[str, ...], shown: set[str]) -> str:
    """The page of some modules. What another page shows already (`shown`) it links to."""
    lines = [f"# {title}", ""]
    for module in modules:
        path = source_of(module)
        if path is None:
            continue
        said = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
        lines += [f"## {module} {{ #module-{module.replace('.', '-')} }}", "", said, ""]
        for name in public_names(module):
            home = home_of(module, name)
            if home in shown:
                lines += [f"`{name}`: see [{name}][{home}].", ""]
            elif home is not None:
                shown.add(home)
                lines += [f"::: {home}", "    options: {heading_level: 3}", ""]
    return "\n".join(lines)


def home_of(module: str, name: str) -> str | None:
    """Where a name is defined: a package shows what its modules define. None where that is another package."""
    path = source_of(module)
    assert path is not None
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    home: str | None = f"{module}.{name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
            start = package.split(".")
            base = ".".join(start[: len(start) - node.level + 1]) if node.level else ""
            target = ".".join(filter(None, [base, node.module or ""]))
            home = None if source_of(target) is None else home_of(target, original)  # the last one, of the newest NNCF
    return home


def configuration_page() -> str:
    """Every field of the configuration, from its JSON schema."""
    schema = json.loads((ROOT / "ilwp_plugin" / "schema.json").read_text(encoding="utf-8"))
    lines = [
        "# Configuration",
        "",
        "Most uses need no configuration. These fields are set more often than the others:",
        "",
        "- [preset](#preset): `small` is the default, `lossless` changes no value, `paper` is for depthwise layers.",
        "- [weight_step](#weight_step): one number between size and accuracy.",
        "- [rate](#rate) and [loss_weight](#loss_weight): in training.",
        "- [target_scopes](#target_scopes) and [ignored_scopes](#ignored_scopes): which layers are taken.",
        "- [recipes](#recipes): what is done with which tensors.",
        "",
        "The same configuration serves Python (`IlwpConfig`), JSON files, the toolkits and the command line.",
        "Unknown fields are refused. An editor completes the fields and checks them where a file names the schema.",
        "The schema is [ilwp.schema.json](ilwp.schema.json), and what `ilwp schema` prints:",
        "",
        "```json",
        '{"$schema": "ilwp.schema.json", "bits": 4}',
        "```",
        "",
    ]
    definitions = schema.get("$defs", {})
    lines += _fields(schema["properties"], "##", definitions)
    for name, value in definitions.items():
        if "properties" in value:
            lines += [f"## {name}", "", value.get("description", ""), ""]
            lines += _fields(value["properties"], "###", definitions)
    return "\n".join(lines)


def _fields(properties: dict[str, Any], heading: str, definitions: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in properties.items():
        default = f"default `{json.dumps(value['default'])}`" if "default" in value else "required"
        lines += [
            f"{heading} {name}",
            "",
            value.get("description", ""),
            "",
            f"{_type(value, definitions)}; {default}.",
            "",
        ]
    return lines


def _type(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A type in words."""
    if "enum" in value:
        return "one of " + ", ".join(f"`{json.dumps(item)}`" for item in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return _type(definitions[name], definitions) if "properties" not in definitions[name] else f"a `{name}`"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(item, definitions) for item in value["anyOf"]))
    kind = {"array": "a list", "object": "an object", "null": "`null`", "boolean": "`true` or `false`"}.get(
        value.get("type", ""), f"a {value.get('type', 'value')}" if value.get("type") != "integer" else "an integer"
    )
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    said = [f"{words} {value[key]}" for key, words in bounds.items() if key in value and abs(value[key]) < 1e30]
    return kind + (f" ({', '.join(said)})" if said else "")


def command_line_page() -> str:
    """Every command with its options, as typer has them."""
    from typer.main import get_command

    from ilwp_plugin.cli.main import app

    command = get_command(app)
    context = command.make_context("ilwp", [], resilient_parsing=True)
    lines = [
        "# Command line",
        "",
        "`ilwp COMMAND --help` says the same. Three commands are used most: [compress](#ilwp-compress),",
        "[inspect](#ilwp-inspect) and [decompress](#ilwp-decompress).",
        "",
        "Exit codes: 0 done, 1 an error with one line on stderr, 2 wrong usage, 130 interrupted. `--quiet` stands",
        "in front of the command (`ilwp --quiet compress ...`). `NO_COLOR=1` takes the colours away.",
        "",
    ]
    lines += ["## Options of all commands", "", *_options(command, context)]
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        inner = sub.make_context(name, [], parent=context, resilient_parsing=True)
        usage = re.sub(r"[{}]", "", " ".join(sub.collect_usage_pieces(inner)))
        lines += [f"## ilwp {name}", "", *(sub.help or "").splitlines(), ""]
        lines += ["```text", f"ilwp {name} {usage}", "```", "", *_options(sub, inner)]
    return "\n".join(lines)


def _options(command: Any, context: Any) -> list[str]:
    rows = []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        names = ", ".join(
            f"`{name}`" for name in [*getattr(parameter, "opts", []), *getattr(parameter, "secondary_opts", [])]
        )
        if parameter.param_type_name == "argument":
            names = f"`{parameter.metavar or parameter.name.upper()}`"
        said = (getattr(parameter, "help", None) or "").replace("|", "\\|")
        rows.append(f"| {names} | {said} |")
    return ["| option | meaning |", "| --- | --- |", *rows, ""] if rows else []


# --- what MkDocs calls


def on_startup(**_: Any) -> None:
    """The folder `integrations` under the name by which it is imported."""
    packages = ROOT / "out" / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    link = packages / "ilwp_integrations"
    if not link.is_symlink():
        link.symlink_to(ROOT / "integrations", target_is_directory=True)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Pages that are in the navigation but not in this version are left out of it."""

    def kept(items: list[Any]) -> list[Any]:
        result = []
        for item in items:
            ((title, target),) = item.items()
            if isinstance(target, list):
                result.append({title: kept(target)})
            elif target in made or (ROOT / "docs" / target).exists():
                result.append(item)
        return result

    made = {f"reference/{slug(title)}.md" for title in API} | set(ELSEWHERE.values())
    made |= {"reference/configuration.md", "reference/command_line.md"}
    config.nav = kept(config.nav or [])
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that are made, not written, and the schemas."""
    shown: set[str] = set()
    made = {f"reference/{slug(title)}.md": api_page(title, modules, shown) for title, modules in API.items()}
    made["reference/configuration.md"] = configuration_page()
    made["reference/command_line.md"] = command_line_page()
    made["reference/ilwp.schema.json"] = (ROOT / "ilwp_plugin" / "schema.json").read_text(encoding="utf-8")
    for name, uri in ELSEWHERE.items():
        if (ROOT / name).exists():
            made[uri] = (ROOT / name).read_text(encoding="utf-8")
    for uri, content in made.items():
        with contextlib.suppress(KeyError, ValueError):
            if found := files.get_file_from_path(uri):
                files.remove(found)
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs: to their page, or to no page at all."""
    uri = page.file.src_uri
    origin = next((name for name, own in ELSEWHERE.items() if own == uri), f"docs/{uri}")

    def target(found: re.Match[str]) -> str:
        text, link = found.group(1), found.group(2)
        if re.match(r"[a-z]+:|#|/", link):
            return found.group(0)
        path, mark, anchor = link.partition("#")
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if whole in ELSEWHERE:
            own = ELSEWHERE[whole]
        elif whole.startswith("docs/") and _shown(files, whole.removeprefix("docs/")):  # a page or a picture
            own = whole.removeprefix("docs/")
        elif whole != "README.md" and (ROOT / whole).exists():
            if text.startswith("`"):
                return text
            return f"`{whole}`" if text in whole else f"{text} (`{whole}`)"
        elif whole == "README.md":
            own = "index.md"
        else:
            return found.group(0)
        return f"[{text}]({posixpath.relpath(own, posixpath.dirname(uri) or '.')}{mark}{anchor})"

    return re.sub(r"\[([^\]\[]+)\]\(([^)\s]+)\)", target, markdown)


def _shown(files: Files, uri: str) -> bool:
    """Whether a file is a part of the site."""
    file = files.get_file_from_path(uri)
    return file is not None and not file.inclusion.is_excluded()


def on_page_content(html: str, **_: Any) -> str:
    """A picture opens in its full size where it is clicked: on a phone its small print cannot be read."""
    return re.sub(r'<img\b[^>]*\bsrc="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', html)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Every page that is written has a place in the navigation."""
    shown = {page.file.src_uri for page in nav.pages}
    lost = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in shown)
    if lost:
        raise SystemExit(f"not in the navigation of mkdocs.yml: {', '.join(lost)}")
    return nav
