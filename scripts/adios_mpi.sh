#!/bin/sh
# Puts an ADIOS2 with MPI, built from its source distribution, in place of the serial wheel of a virtual environment.
# It takes about ten minutes on two cores the first time; what was built is kept under XDG_CACHE_HOME for the next one.
#
#     sh scripts/adios_mpi.sh [VENV]
set -eu
venv=$(cd "${1:-.venv}" && pwd)
python=$venv/bin/python
version=2.12.1.1001
fail() { echo "adios-mpi: $1" >&2; exit 1; }

[ -x "$python" ] || fail "there is no virtual environment in $venv: run make setup first"
[ -x "$venv/bin/mpicc" ] || fail "$venv/bin/mpicc is missing: pip install mpich mpi4py"
"$python" -c 'import mpi4py, numpy' || fail "mpi4py and numpy are needed: pip install 'coupler[mpi]'"
if [ "$("$python" -c 'import adios2; print(adios2.is_built_with_mpi, adios2.__version__)' 2>/dev/null)" = "True ${version%.*}" ]; then
    echo "adios-mpi: $venv has ADIOS2 ${version%.*} with MPI already"
    exit 0
fi

key=$("$python" - <<'EOF'
import importlib.metadata as m, platform, sys
print(f"py{sys.version_info[0]}{sys.version_info[1]}-numpy{m.version('numpy')}-mpich{m.version('mpich')}-{platform.machine()}")
EOF
)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/coupler/adios2-$version-$key.tar.gz
if [ ! -f "$cache" ]; then
    command -v c++ >/dev/null || fail "a C++ compiler is needed: apt-get install g++"
    mkdir -p "$(dirname "$cache")"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    echo "adios-mpi: building ADIOS2 $version with MPI; about ten minutes on two cores"
    "$python" -m venv --without-pip "$work/tools"
    "$python" -m pip --python "$work/tools/bin/python" install --quiet cmake ninja
    "$python" -m pip download --quiet --no-deps --no-binary adios2 "adios2==$version" -d "$work"
    tar -xzf "$work/adios2-$version.tar.gz" -C "$work"
    PATH=$work/tools/bin:$venv/bin:$PATH
    # The library and its Python module find each other, and MPI, from where they lie: no path of this machine is in them.
    cmake -S "$work/adios2-$version" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_INSTALL_PREFIX="$venv" -DCMAKE_INSTALL_LIBDIR=lib -DPython_EXECUTABLE="$python" \
        -DCMAKE_INSTALL_RPATH='$ORIGIN;$ORIGIN/../../..' -DCMAKE_BUILD_WITH_INSTALL_RPATH=OFF \
        -DADIOS2_USE_MPI=ON -DADIOS2_USE_Python=ON -DADIOS2_USE_SST=ON -DADIOS2_USE_Fortran=OFF -DADIOS2_USE_CURL=OFF \
        -DADIOS2_USE_HDF5=OFF -DADIOS2_USE_ZeroMQ=OFF -DADIOS2_USE_PNG=OFF -DADIOS2_USE_BZip2=OFF \
        -DMPI_C_COMPILER="$venv/bin/mpicc" -DMPI_CXX_COMPILER="$venv/bin/mpicxx" \
        -DBUILD_TESTING=OFF -DADIOS2_BUILD_EXAMPLES=OFF >"$work/cmake.log" 2>&1 || {
        tail -20 "$work/cmake.log" >&2
        fail "CMake failed"
    }
    cmake --build "$work/build" >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" >&2; fail "the build failed"; }
    DESTDIR=$work/tree cmake --install "$work/build" --strip >"$work/install.log" 2>&1 || fail "the installation failed"
    tar -czf "$work/tree.tar.gz" -C "$work/tree$venv" .
    mv "$work/tree.tar.gz" "$cache"
fi
"$python" -m pip uninstall --quiet --yes adios2 2>/dev/null || true
tar -xzf "$cache" -C "$venv"
"$python" -c 'import adios2; assert adios2.is_built_with_mpi' || fail "the build in $cache does not work here; remove it"
echo "adios-mpi: ADIOS2 ${version%.*} with MPI is in $venv"
