"""Write config.yaml, config.schema.json and the guides' reference of settings from the schema.

python -m slimtune.settings     # from finetune/, after every change in slimtune/config
"""

from slimtune.config import Config
from slimtune.settings import PROJECT
from slimtune.settings.settings_tables import GUIDES, with_reference
from slimtune.settings.written import config_yaml, schema_json


def write_files() -> None:
    """The files of the project, with the schema's defaults."""
    (PROJECT / "config.yaml").write_text(config_yaml(Config()), encoding="utf-8")
    (PROJECT / "config.schema.json").write_text(schema_json(), encoding="utf-8")
    for language, name in GUIDES.items():
        (PROJECT / name).write_text(with_reference(PROJECT / name, language), encoding="utf-8")


if __name__ == "__main__":
    write_files()
