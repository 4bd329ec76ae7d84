"""Package metadata, all of it from settings.ini (pyproject.toml marks the fields as dynamic)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

LICENSES = {"apache2": "Apache-2.0"}
STATUSES = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
readme = root / "README.md"
package = cfg["lib_path"]
data = f"{package}._data"  # data/ of the checkout, carried inside of the package

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"],
    license=LICENSES[cfg["license"]],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    packages=[*find_packages(include=[package, f"{package}.*"]), data],
    package_dir={data: "data"},
    include_package_data=False,  # only what the next line names
    package_data={data: ["*.csv", "demo/*", "published/*", "scienceworld/*", "scienceworld/tree/*"],
                  package: ["*.pyi", "py.typed"]},
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dask", "dev")},
    python_requires=f">={cfg['min_python']}",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    classifiers=[
        f"Development Status :: {STATUSES[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        f"Programming Language :: Python :: {cfg['min_python']}",
    ],
    entry_points={"nbdev": [f"{package}={package}._modidx:d"]},
    zip_safe=False,
)
