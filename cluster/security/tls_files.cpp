#include "cluster/security/tls_files.hpp"

#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace rollcast {
namespace {

template <auto Free>
struct freer {
  template <class T>
  void operator()(T* held) const noexcept {
    Free(held);
  }
};
using bio_ptr = std::unique_ptr<BIO, freer<&BIO_free_all>>;
using x509_ptr = std::unique_ptr<X509, freer<&X509_free>>;
using key_ptr = std::unique_ptr<EVP_PKEY, freer<&EVP_PKEY_free>>;
using store_ptr = std::unique_ptr<X509_STORE, freer<&X509_STORE_free>>;
using context_ptr = std::unique_ptr<X509_STORE_CTX, freer<&X509_STORE_CTX_free>>;
struct stack_freer {
  void operator()(STACK_OF(X509) * held) const noexcept { sk_X509_pop_free(held, X509_free); }
};
using stack_ptr = std::unique_ptr<STACK_OF(X509), stack_freer>;

bio_ptr reader(const std::string& text) {
  return bio_ptr{BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))};
}

/// Nobody is there to be asked.
int no_passphrase(char*, int, int, void*) {
  return 0;
}

stack_ptr certificates_of(const std::string& text) {
  stack_ptr all{sk_X509_new_null()};
  const auto in = reader(text);
  while (X509* one = PEM_read_bio_X509(in.get(), nullptr, no_passphrase, nullptr))
    sk_X509_push(all.get(), one);
  return all;
}

result<void> check(const tls_options& names, const std::array<std::string, 3>& texts) {
  const auto certificate = names.certificate.string();
  const auto chain = certificates_of(texts[0]);
  if (sk_X509_num(chain.get()) == 0)
    return fail(errc::bad_config, "TLS certificate " + certificate + " holds none in PEM");
  X509* own = sk_X509_value(chain.get(), 0);
  const key_ptr key{
    PEM_read_bio_PrivateKey(reader(texts[1]).get(), nullptr, no_passphrase, nullptr)};
  if (!key)
    return fail(errc::bad_config,
                "TLS key " + names.key.string() + " holds no key in PEM that needs no passphrase");
  if (X509_check_private_key(own, key.get()) != 1)
    return fail(errc::bad_config, "TLS key " + names.key.string()
                                    + " does not belong to the certificate " + certificate);
  const auto cas = certificates_of(texts[2]);
  if (sk_X509_num(cas.get()) == 0)
    return fail(errc::bad_config, "TLS CA " + names.ca.string() + " holds no certificate in PEM");
  const store_ptr store{X509_STORE_new()};
  for (int at = 0; at < sk_X509_num(cas.get()); ++at)
    X509_STORE_add_cert(store.get(), sk_X509_value(cas.get(), at));
  const context_ptr context{X509_STORE_CTX_new()};
  X509_STORE_CTX_init(context.get(), store.get(), own, chain.get());
  if (X509_verify_cert(context.get()) == 1)
    return {};
  return fail(errc::bad_config,
              "TLS certificate " + certificate + " is not good by the CA " + names.ca.string()
                + ": " + X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get())));
}

/// Closes at its end.
class descriptor {
public:
  descriptor() = default;
  explicit descriptor(int fd) noexcept : fd_(fd) {}
  ~descriptor() {
    if (fd_ >= 0)
      ::close(fd_);
  }
  descriptor(descriptor&& other) noexcept : fd_(other.release()) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const noexcept { return fd_; }
  int release() noexcept { return std::exchange(fd_, -1); }

private:
  int fd_ = -1;
};

/// Other contents under the same name. Both are open, so nothing but a race in the kernel can be in
/// the way. @returns 0 or an errno.
int exchange(int from, int to) noexcept {
  for (int turn = 0; turn < 100; ++turn) {
    if (::dup3(from, to, O_CLOEXEC) >= 0)
      return 0;
    if (errno != EINTR && errno != EBUSY)
      break;
  }
  return errno;
}

result<int> in_memory(const std::string& text) {
  const int made = ::memfd_create("rollcast-tls", MFD_CLOEXEC);
  if (made >= 0 && ::write(made, text.data(), text.size()) == static_cast<ssize_t>(text.size()))
    return made;
  if (made >= 0)
    ::close(made);
  return fail(errc::io_failed,
              std::string{"cannot keep TLS files in memory: "} + std::strerror(errno));
}

} // namespace

result<std::unique_ptr<tls_files>> tls_files::open(tls_options options) {
  if (options.certificate.empty() || options.key.empty() || options.ca.empty())
    return fail(errc::bad_config, "TLS needs --tls-cert, --tls-key and --tls-ca together");
  std::unique_ptr<tls_files> made{new tls_files{std::move(options)}};
  if (const auto ok = made->refresh(); !ok)
    return fail(ok);
  for (std::size_t at = 0; at < made->names_.size(); ++at)
    made->names_[at] = "/proc/self/fd/" + std::to_string(made->descriptors_[at]);
  return made;
}

tls_files::~tls_files() {
  for (const int descriptor : descriptors_)
    if (descriptor >= 0)
      ::close(descriptor);
}

std::array<file_stamp, 3> tls_files::stamps() const {
  return {stamp_of(options_.certificate), stamp_of(options_.key), stamp_of(options_.ca)};
}

bool tls_files::changed() const {
  return stamps() != stamps_;
}

result<void> tls_files::refresh() {
  stamps_ = stamps(); // before they are read: what comes later is seen later
  const auto ok = take_over();
  if (!ok && ok.error().code == errc::io_failed)
    stamps_.reset(); // it may pass by itself
  return ok;
}

tls_files::news tls_files::renew() {
  const auto ok = refresh();
  auto now = ok ? std::string{} : ok.error().detail;
  const bool again = now == wrong_;
  wrong_ = std::move(now);
  if (ok)
    return {true, "renewed TLS files are in use"};
  return {false, again ? "" : wrong_ + "; the TLS files read before stay in use"};
}

result<void> tls_files::take_over() {
  auto certificate = read_trusted(options_.certificate, "TLS certificate");
  if (!certificate)
    return fail(certificate);
  auto key = read_secret(options_.key, "TLS key");
  if (!key)
    return fail(key);
  auto ca = read_trusted(options_.ca, "TLS CA");
  if (!ca)
    return fail(ca);
  const std::array<std::string, 3> texts{std::move(*certificate), std::move(*key), std::move(*ca)};
  const auto checked = check(options_, texts);
  ERR_clear_error(); // the end of each file is in it, and the next user would take it for its own
  if (!checked)
    return checked;
  std::array<descriptor, 3> fresh;
  for (std::size_t at = 0; at < fresh.size(); ++at) {
    const auto made = in_memory(texts[at]);
    if (!made)
      return fail(made);
    fresh[at] = descriptor{*made};
  }
  for (std::size_t at = 0; at < fresh.size(); ++at)
    if (descriptors_[at] < 0)
      descriptors_[at] = fresh[at].release();
    else if (const int failed = exchange(fresh[at].get(), descriptors_[at]); failed != 0)
      return fail(errc::io_failed,
                  std::string{"cannot exchange TLS files in memory: "} + std::strerror(failed));
  return {};
}

} // namespace rollcast
