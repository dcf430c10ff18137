# shellcheck shell=bash
# The base images: pulled if a registry is reachable, otherwise made from Debian packages. To be sourced.

# Time limit for a pull, in seconds.
pull_deadline=${PULL_DEADLINE:-900}
rust_version=$(sed -n 's/^ARG RUST_VERSION=//p' "$root/Dockerfile")
rust_base=rust:$rust_version-bookworm
broker_base=$(sed -n 's/^ *image: \(rabbitmq:.*\)$/\1/p' "$root/config/docker/compose.yaml")
# The broker's image, set by provide_broker.
broker_image=''

# Pulls an image unless it exists locally; fails if it cannot.
obtain() {
    docker image inspect "$1" >/dev/null 2>&1 && return 0
    say "pulling $1"
    timeout "$pull_deadline" docker pull --quiet "$1" >/dev/null 2>&1
}

provide_rust() {
    if obtain "$rust_base"; then return 0; fi
    say "cannot pull $rust_base: making it from Debian 12 and this machine's Rust"
    local sysroot debian=$engine_dir/rust-root
    sysroot=$(rustc --print sysroot) || die "cannot make $rust_base: Rust is not installed"
    bootstrap "$debian" ca-certificates,gcc,libc6-dev,make
    mkdir -p "$debian/usr/local/rust/bin"
    cp -L "$sysroot/bin/cargo" "$sysroot/bin/rustc" "$debian/usr/local/rust/bin/"
    cp -a "$sysroot/lib" "$debian/usr/local/rust/"
    # This machine's certificate authorities, which may include more than Debian's.
    cp /etc/ssl/certs/ca-certificates.crt "$debian/etc/ssl/certs/"
    import "$debian" "$rust_base" 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    say "$rust_base contains $(rustc --version)"
}

# The substitute has another name, because Debian's RabbitMQ has another version than the image in compose.yaml.
provide_broker() {
    if obtain "$broker_base"; then
        broker_image=$broker_base
        return 0
    fi
    broker_image=orderd-test/rabbitmq:bookworm
    if docker image inspect "$broker_image" >/dev/null 2>&1; then return 0; fi
    say "cannot pull $broker_base: making $broker_image from Debian 12 and its package rabbitmq-server"
    local debian=$engine_dir/broker-root
    bootstrap "$debian" rabbitmq-server
    import "$debian" "$broker_image" 'USER rabbitmq' 'ENV HOME=/var/lib/rabbitmq RABBITMQ_LOGS=-' \
        'ENV PATH=/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin:/sbin:/bin' 'ENTRYPOINT ["/usr/lib/rabbitmq/bin/rabbitmq-server"]'
}

# Makes a minimal Debian 12 with additional packages in a directory.
bootstrap() {
    local directory=$1 packages=$2
    ((EUID == 0)) || die "debootstrap requires root; pull the base images, or run this as root"
    command -v debootstrap >/dev/null || install_packages debootstrap
    rm -rf "$directory"
    debootstrap --variant=minbase --include="$packages" bookworm "$directory" >"$directory.log" 2>&1 ||
        die "debootstrap failed: $(tail -n 3 "$directory.log")"
    rm -rf "$directory"/var/cache/apt/archives/*.deb "$directory"/var/lib/apt/lists/*
}

# Makes an image from a directory, and deletes the directory.
import() {
    local directory=$1 image=$2 change changes=()
    shift 2
    for change in "$@"; do changes+=(--change "$change"); done
    tar -C "$directory" --numeric-owner -c . | docker import "${changes[@]}" - "$image" >/dev/null
    rm -rf "$directory"
}
