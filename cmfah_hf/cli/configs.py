"""`cmfah configs`."""

from typing import Annotated

import typer


def configs(
    name: Annotated[str | None, typer.Argument(help="A configuration to show, such as 'scenes' or a file.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print only the path of its file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the configurations that came with the package, or show one with the files that it extends.

    `cmfah train` and `cmfah experiment run` take their names.
    """
    import yaml

    from cmfah_hf.cli.output import print_json, print_table, say
    from cmfah_hf.documents import read_yaml
    from cmfah_hf.errors import CMFAHError
    from cmfah_hf.training.settings.bundled import bundled_files, find_configuration
    from cmfah_hf.training.settings.yaml_files import EXTENDS, SECTIONS, merged, read_chain

    if name is None:
        if path:
            raise CMFAHError(
                "--path prints the path of one configuration; name it, as in `cmfah configs scenes --path`."
            )
        files = bundled_files()
        if json:
            print_json([{"name": file.name, "path": str(file.path), "about": file.about} for file in files])
            return
        print_table("Configurations", ["name", "about"], [[file.name, file.about] for file in files])
        return
    file = find_configuration(name)
    if path:
        say(str(file))
        return
    content = read_yaml(file)
    if isinstance(content, dict) and content.keys() <= {*SECTIONS, EXTENDS}:  # not a grid or a launch file
        content = merged(read_chain(file))
    if json:
        print_json(content)
        return
    say(f"# {file}")
    for line in yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120).splitlines():
        say(line)
