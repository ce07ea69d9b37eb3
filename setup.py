"""What pyproject.toml cannot say: `strongroom-wal`, compiled where a compiler is present."""

from __future__ import annotations

import os
import sys

from setuptools import setup
from setuptools.errors import CCompilerError, CompileError, ExecError, LinkError, PlatformError

# After setuptools, which puts its own distutils in the place of Python's, or of none.
from distutils.ccompiler import new_compiler  # isort: skip
from distutils.command.build_scripts import build_scripts  # isort: skip
from distutils.sysconfig import customize_compiler  # isort: skip

NAME, SOURCE = "strongroom-wal", "src/client/wal.c"
IN_PYTHON = """#!python
import sys

from strongroom.cli.main import main

sys.argv[1:1] = ["wal"]
main()
"""


class Scripts(build_scripts):
    """Compile the client, or write one in Python that does the same, slower."""

    def run(self) -> None:
        self.mkpath(self.build_dir)
        target = os.path.join(self.build_dir, NAME)
        try:
            self._compile()
        except (
            CCompilerError,
            CompileError,
            ExecError,
            LinkError,
            PlatformError,
            OSError,
        ) as fault:
            print(f"{NAME} is built without a compiler: {fault}", file=sys.stderr)
            with open(target, "w") as file:
                file.write(IN_PYTHON)
        os.chmod(target, 0o755)  # noqa: S103 - a program, for everybody

    def _compile(self) -> None:
        compiler = new_compiler()
        customize_compiler(compiler)
        where = self.get_finalized_command("build").build_temp
        objects = compiler.compile([SOURCE], output_dir=where, extra_preargs=["-O2"])
        compiler.link_executable(objects, NAME, output_dir=self.build_dir)

    def get_source_files(self) -> list[str]:
        return [SOURCE]


setup(scripts=[SOURCE], cmdclass={"build_scripts": Scripts})
