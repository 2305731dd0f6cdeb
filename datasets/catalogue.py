"""The catalogue: public data sets by name, their sources, and their checksums where known.

Checksums, and how certain they are:

- rMD17's archive: the sha256 is quoted in full by one independent user, whose md5 and size others quote too, and its
  first 12 digits are pinned by the load-atoms package. It was not computed here.
- rMD17's single files (figshare 12672038): file numbers and md5 sums as two independent users quote them from
  figshare's interface. If figshare's files differ, the archive is tried next.
- MD17, MD22 and ModelNet: the publisher gives none, so ``None``: the content of the first download is checked, and its
  sha256 is stored next to the file and compared from then on (trust on first use).
"""

from typing import NamedTuple

from mdrelax.datasets.md17 import MD17_FORMULAS

__all__ = ["CATALOGUE", "Item", "Source", "is_name"]


class Source(NamedTuple):
    """One place to get a file from."""

    url: str
    checksum: str | None = None  # "sha256:..." or "md5:..." of the download; None if unknown
    archive: str | None = None  # the file name of the tar archive that the address returns
    member: str | None = None  # the path inside that archive


class Item(NamedTuple):
    """One file of a public data set; its sources are tried in order."""

    filename: str
    sources: tuple[Source, ...]
    formula: str | None = None  # of the molecule in an npz file; None for other files
    holds: str | None = None  # of a zip archive: the ending of the members that it must have


RMD17_ARCHIVE = "rmd17.tar.bz2"  # 1,066,301,513 bytes
RMD17_SHA256 = "sha256:cddeea2ec2c4b22a9de16a9a65a3eeedac5b29da9c99c20bbff0153912bf922b"
RMD17_ARCHIVE_URLS = (
    "https://figshare.com/ndownloader/files/23950376",
    "https://archive.materialscloud.org/records/pfffs-fff86/files/rmd17.tar.bz2?download=1",
    "https://archive.materialscloud.org/record/file?record_id=466&filename=rmd17.tar.bz2",
)
RMD17_FILES = {  # figshare file number and md5 of each molecule's npz
    "aspirin": (62265757, "17fd6fb69066888613f7e16b358a7553"),
    "azobenzene": (62265754, "be79df918468eb3579aa73a0becf7390"),
    "benzene": (62265739, "18c9242bc90fbf28215f6dd81e650f16"),
    "ethanol": (62265733, "eb837fb8deb27d4e0d52f71a03aff776"),
    "malonaldehyde": (62265736, "cdc1d70c0c34062ddde6e5071eb6fe21"),
    "naphthalene": (62265751, "0efba19c9907e3852318b1e6008b3b9e"),
    "paracetamol": (62265760, "ba10784f7b67635427085f6d7ec2dd97"),
    "salicylic": (62265748, "900fedf242da438400fa4293348d7dd1"),
    "toluene": (62265742, "0f2913d51f8149c90ab28d697a076f64"),
    "uracil": (62265745, "992a4479c28a07e0cce6da964805be31"),
}
GDML_FOLDERS = (
    "https://www.quantum-machine.org/gdml/data/npz/",
    "http://www.quantum-machine.org/gdml/data/npz/",
    "http://www.quantum-machine.org/gdml/repo/datasets/",
)
MD17_FILES = {
    **{name: (f"md17_{name}.npz",) for name in MD17_FORMULAS},
    "azobenzene": ("azobenzene_dft.npz", "md17_azobenzene.npz"),
    "benzene": ("md17_benzene2017.npz",),
    "paracetamol": ("paracetamol_dft.npz", "md17_paracetamol.npz"),
}
MD22_FILES = {  # file names, and formulas from the paper (doi 10.1126/sciadv.adf0873)
    "Ac-Ala3-NHMe": (("md22_Ac-Ala3-NHMe.npz",), "C12H22N4O4"),
    "AT-AT": (("md22_AT-AT.npz",), "C20H22N14O4"),
    "AT-AT-CG-CG": (("md22_AT-AT-CG-CG.npz",), "C38H42N30O8"),
    "DHA": (("md22_DHA.npz",), "C22H32O2"),
    "buckyball-catcher": (("md22_buckyball-catcher.npz",), "C120H28"),
    "double-walled-nanotube": (("md22_dw_nanotube.npz", "md22_double-walled_nanotube.npz"), "C326H44"),
    "stachyose": (("md22_stachyose.npz",), "C24H42O21"),
}
MODELNET10_URLS = (
    "http://vision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
    "http://3dvision.princeton.edu/projects/2014/3DShapeNets/ModelNet10.zip",
)
MODELNET40_URLS = (
    "https://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
    "http://shapenet.cs.stanford.edu/media/modelnet40_ply_hdf5_2048.zip",
)


def _from_archive(member: str) -> tuple[Source, ...]:
    return tuple(Source(url, RMD17_SHA256, RMD17_ARCHIVE, member) for url in RMD17_ARCHIVE_URLS)


def _rmd17(molecule: str) -> Item:
    """The molecule's own file first (65 to 175 MB), then the archive of all ten (1.07 GB)."""
    number, md5 = RMD17_FILES[molecule]
    single = Source(f"https://ndownloader.figshare.com/files/{number}", f"md5:{md5}")
    archived = _from_archive(f"rmd17/npz_data/rmd17_{molecule}.npz")
    return Item(f"rmd17_{molecule}.npz", (single, *archived), MD17_FORMULAS[molecule])


def _modelnet(filename: str, holds: str, *urls: str) -> Item:
    return Item(filename, tuple(Source(url) for url in urls), holds=holds)


def _gdml(prefix: str, molecule: str, names: tuple[str, ...], formula: str) -> Item:
    urls = tuple(Source(folder + name) for name in names for folder in GDML_FOLDERS)
    return Item(f"{prefix}_{molecule}.npz", urls, formula)


CATALOGUE: dict[str, Item] = {
    **{f"rmd17:{molecule}": _rmd17(molecule) for molecule in RMD17_FILES},
    **{
        f"rmd17:index_{part}_{number:02d}": Item(
            f"rmd17_index_{part}_{number:02d}.csv", _from_archive(f"rmd17/splits/index_{part}_{number:02d}.csv")
        )
        for part in ("train", "test")
        for number in range(1, 6)
    },
    **{f"md17:{name}": _gdml("md17", name, files, MD17_FORMULAS[name]) for name, files in MD17_FILES.items()},
    **{f"md22:{name}": _gdml("md22", name, files, formula) for name, (files, formula) in MD22_FILES.items()},
    "modelnet:10": _modelnet("ModelNet10.zip", ".off", *MODELNET10_URLS),
    "modelnet:40": _modelnet("modelnet40_ply_hdf5_2048.zip", ".h5", *MODELNET40_URLS),
}


def is_name(source: str) -> bool:
    """Whether a source is written like a name of the catalogue (``rmd17:...``), known or misspelt."""
    return ":" in source and source.split(":")[0] in {name.split(":")[0] for name in CATALOGUE}
