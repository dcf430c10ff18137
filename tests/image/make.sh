# shellcheck shell=bash
# Builds the image. To be sourced after engine.sh and bases.sh.

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
image=orderd:$version

make_image() {
    local revision
    revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
    provide_rust
    docker build "${build_network[@]}" --build-arg VERSION="$version" --build-arg REVISION="$revision" \
        --tag "$image" "$root" || die "cannot build the image $image"
}
