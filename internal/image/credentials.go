package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Credentials are what a person gives to log in.
type Credentials struct{ Username, Password string }

// hubServer is the key under which docker has always kept the credentials of docker.io.
const hubServer = "https://index.docker.io/v1/"

// credentialFiles lists the files that may hold credentials, the first that knows the registry wins.
// login writes to the first.
func credentialFiles() []string {
	if f := os.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		return []string{f}
	}
	var files []string
	home, err := os.UserHomeDir()
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		files = append(files, filepath.Join(dir, "config.json"))
	} else if err == nil {
		files = append(files, filepath.Join(home, ".docker/config.json"))
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		files = append(files, filepath.Join(dir, "containers/auth.json"))
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		files = append(files, filepath.Join(dir, "containers/auth.json"))
	} else if err == nil {
		files = append(files, filepath.Join(home, ".config/containers/auth.json"))
	}
	return files
}

// readCredentialFile reads a docker config file; one that is not there is empty.
func readCredentialFile(path string) (*configfile.ConfigFile, error) {
	config := configfile.New(path)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return config, nil
	}
	if err != nil {
		return nil, err
	}
	if err := errors.Join(config.LoadFromReader(f), f.Close()); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return config, nil
}

// credentialKeys lists the names that credentials for a repository may be kept under: the most special first.
func credentialKeys(registry, repository string) []string {
	if registry == defaultRegistry {
		return []string{hubServer, defaultRegistry, dockerHub, "registry-1.docker.io"}
	}
	var keys []string
	for p := registry + "/" + repository; p != registry; p = p[:strings.LastIndexByte(p, '/')] {
		keys = append(keys, p)
	}
	return append(keys, registry)
}

// findAuth looks for the user's credentials for a repository; it is anonymous if there are none.
func findAuth(ref Reference) (authn.Authenticator, error) {
	for _, path := range credentialFiles() {
		config, err := readCredentialFile(path)
		if err != nil {
			return nil, err
		}
		for _, key := range credentialKeys(ref.Registry, ref.Repository) {
			found, err := lookupAuth(config, key)
			if err != nil {
				return nil, fmt.Errorf("credentials for %s in %s: %w", key, path, err)
			}
			if found != nil {
				return found, nil
			}
		}
	}
	return authn.Anonymous, nil
}

// lookupAuth gives nil if the file knows nothing of key.
func lookupAuth(config *configfile.ConfigFile, key string) (authn.Authenticator, error) {
	got := config.AuthConfigs[fileKey(config, key)]
	if helperFor(config, key) != "" || os.Getenv(configfile.DockerEnvConfigKey) != "" {
		kept, err := config.GetAuthConfig(key)
		if err != nil {
			return nil, err
		}
		if kept.ServerAddress = ""; kept != (types.AuthConfig{}) {
			got = kept
		}
	}
	got.ServerAddress = "" // is always filled in
	if got == (types.AuthConfig{}) {
		return nil, nil
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: got.Username, Password: got.Password, Auth: got.Auth,
		IdentityToken: got.IdentityToken, RegistryToken: got.RegistryToken,
	}), nil
}

// fileKey is the name under which the file itself has key's credentials: old files have urls of the host.
func fileKey(config *configfile.ConfigFile, key string) string {
	if _, ok := config.AuthConfigs[key]; ok {
		return key
	}
	for k := range config.AuthConfigs {
		if _, rest, ok := strings.Cut(k, "://"); ok && strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(rest, "/"), "/v1"), "/") == key {
			return k
		}
	}
	return key
}

// helperFor is the credential helper that keeps key's credentials; "" is none.
func helperFor(config *configfile.ConfigFile, key string) string {
	if helper := config.CredentialHelpers[key]; helper != "" {
		return helper
	}
	return config.CredentialsStore
}

// parseServer takes what people give to login for the registry's host.
func parseServer(server string) (string, error) {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	switch host {
	case "", dockerHub, "registry-1.docker.io", "hub.docker.com":
		return defaultRegistry, nil
	}
	if !validRegistry(host) {
		return "", fmt.Errorf("invalid registry host %q", host)
	}
	return host, nil
}

func serverKey(registry string) string {
	if registry == defaultRegistry {
		return hubServer
	}
	return registry
}

// Login verifies credentials at a registry ("" is docker.io) and keeps them where docker does. It returns the registry's
// name and where they are kept: a file, or the name of a credential helper.
func Login(ctx context.Context, server string, cred Credentials, tlsVerify bool) (registry, where string, err error) {
	registry, err = parseServer(server)
	if err != nil {
		return "", "", err
	}
	auth := authn.FromConfig(authn.AuthConfig{Username: cred.Username, Password: cred.Password})
	if err := checkLogin(ctx, registry, auth, !tlsVerify); err != nil {
		return registry, "", fmt.Errorf("login to %s: %w", registry, err)
	}
	where, err = keepCredentials(serverKey(registry), cred)
	if err != nil {
		return registry, "", fmt.Errorf("keep credentials for %s: %w", registry, err)
	}
	return registry, where, nil
}

func keepCredentials(key string, cred Credentials) (where string, err error) {
	files := credentialFiles()
	if len(files) == 0 {
		return "", withHint(errors.New("no place for them"), "set HOME or REGISTRY_AUTH_FILE")
	}
	config, err := readCredentialFile(files[0])
	if err != nil {
		return "", err
	}
	auth := types.AuthConfig{ServerAddress: key, Username: cred.Username, Password: cred.Password}
	if helper := helperFor(config, key); helper != "" {
		return "docker-credential-" + helper, config.GetCredentialsStore(key).Store(auth)
	}
	// Not through the library's file store, which prints.
	config.AuthConfigs[key] = auth
	return files[0], config.Save()
}

func checkLogin(ctx context.Context, registry string, auth authn.Authenticator, insecure bool) (err error) {
	host := registryHost(registry)
	var opts []name.Option
	if insecure {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return err
	}
	inner, err := baseTransport(host, insecure)
	if err != nil {
		return err
	}
	ref := Reference{Registry: registry}
	rt, err := transport.NewWithContext(ctx, reg, auth, inner, nil)
	if err != nil {
		return explainLogin(err, ref)
	}
	// A registry with basic authentication has not seen the password yet.
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return explainLogin(err, ref)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	return explainLogin(transport.CheckError(resp, http.StatusOK), ref)
}

func explainLogin(err error, ref Reference) error {
	var te *transport.Error
	if errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden) {
		return fmt.Errorf("wrong user name or password: %w", err)
	}
	if err == nil {
		return nil
	}
	return explainRegistry(err, ref)
}

// Logout forgets the credentials for a registry in every file that has them. It says whether there were any.
func Logout(server string) (registry string, removed bool, err error) {
	registry, err = parseServer(server)
	if err != nil {
		return "", false, err
	}
	for _, path := range credentialFiles() {
		config, err := readCredentialFile(path)
		if err != nil {
			return registry, removed, err
		}
		for _, key := range credentialKeys(registry, "") {
			key = strings.TrimSuffix(key, "/")
			auth, err := lookupAuth(config, key)
			if err != nil {
				return registry, removed, err
			}
			if auth == nil {
				continue
			}
			if err := forgetCredentials(config, key); err != nil {
				return registry, removed, fmt.Errorf("forget credentials for %s: %w", registry, err)
			}
			removed = true
		}
	}
	return registry, removed, nil
}

func forgetCredentials(config *configfile.ConfigFile, key string) error {
	if helperFor(config, key) != "" {
		return config.GetCredentialsStore(key).Erase(key)
	}
	delete(config.AuthConfigs, fileKey(config, key))
	return config.Save()
}
