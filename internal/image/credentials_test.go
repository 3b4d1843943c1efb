package image

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// home gives the test a home directory without credentials.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	for _, v := range []string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_AUTH_CONFIG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(v, "")
	}
	return dir
}

// wantBasic makes the registry want a password.
func wantBasic(w http.ResponseWriter, r *http.Request) bool {
	if user, password, ok := r.BasicAuth(); ok && user == "ann" && password == "s3cret:x" {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func TestLoginPullLogout(t *testing.T) {
	dir := home(t)
	reg, s := newRegistry(t), newStore(t)
	ref := reg.push(t, "private:1", build(t, nil, gzipLayer(t, "a", "x")))
	reg.misbehave(wantBasic)
	ctx := context.Background()

	_, err := s.Pull(ctx, ref, PullOptions{})
	if err == nil || hintOf(err) != "urun login "+reg.host {
		t.Errorf("pull before login: %v, hint %q", err, hintOf(err))
	}
	if _, _, err := Login(ctx, reg.host, Credentials{"ann", "wrong"}, true); err == nil || !strings.Contains(err.Error(), "wrong user name or password") {
		t.Errorf("login with a wrong password: %v", err)
	}
	file := filepath.Join(dir, ".docker/config.json")
	if _, err := os.Stat(file); err == nil {
		t.Error("a wrong password was kept")
	}
	if _, where, err := Login(ctx, "http://"+reg.host+"/v2/", Credentials{"ann", "s3cret:x"}, true); err != nil || where != file {
		t.Fatalf("login: %q, %v", where, err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials file: %v, %v", info.Mode(), err)
	}
	if _, err := s.Pull(ctx, ref, PullOptions{Platform: "linux/amd64"}); err != nil {
		t.Errorf("pull after login: %v", err)
	}
	for _, want := range []bool{true, false} {
		if _, removed, err := Logout(reg.host); err != nil || removed != want {
			t.Errorf("logout: %v, %v, want %v", removed, err, want)
		}
	}
	if _, err := s.Pull(ctx, ref, PullOptions{}); err == nil {
		t.Error("pull after logout works")
	}
	if _, err := s.Pull(ctx, ref, PullOptions{Auth: &Credentials{"ann", "s3cret:x"}, Platform: "linux/amd64"}); err != nil {
		t.Errorf("pull with given credentials: %v", err)
	}
}

func TestLoginKeepsTheRestOfTheFile(t *testing.T) {
	dir := home(t)
	reg := newRegistry(t)
	file := filepath.Join(dir, ".docker/config.json")
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(t, os.WriteFile(file, []byte(`{"auths":{"other.example":{"auth":"YTpi"}},"HttpHeaders":{"X":"y"},"currentContext":"c"}`), 0o644))
	if _, _, err := Login(context.Background(), reg.host, Credentials{"ann", "pw"}, true); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Auths          map[string]struct{ Auth string }
		CurrentContext string
		HTTPHeaders    map[string]string `json:"HttpHeaders"`
	}
	raw, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(raw, &got))
	if got.Auths["other.example"].Auth != "YTpi" || got.Auths[reg.host].Auth != "YW5uOnB3" || got.CurrentContext != "c" || got.HTTPHeaders["X"] != "y" {
		t.Errorf("file is %s", raw)
	}
}

// TestPullWithAToken: the bearer flow, with the user's password going to the token server alone.
func TestPullWithAToken(t *testing.T) {
	home(t)
	reg, s := newRegistry(t), newStore(t)
	ref := reg.push(t, "private/app:1", build(t, nil, gzipLayer(t, "a", "x")))
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && user == "ann" && password == "pw" && r.URL.Query().Get("scope") == "repository:private/app:pull":
			fmt.Fprint(w, `{"token":"t0ken"}`)
			return true
		case r.URL.Path != "/token" && user != "":
			t.Error("the registry was sent the password")
		case r.Header.Get("Authorization") == "Bearer t0ken":
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, reg.host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{Auth: &Credentials{"ann", "no"}}); err == nil {
		t.Error("a wrong password works")
	}
	if _, err := s.Pull(context.Background(), ref, PullOptions{Auth: &Credentials{"ann", "pw"}, Platform: "linux/amd64"}); err != nil {
		t.Error(err)
	}
}

// TestFindAuth: which of the places that may hold credentials counts.
func TestFindAuth(t *testing.T) {
	auth := func(server, user string) string {
		return fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":"p"}}}`, server, user)
	}
	for _, tt := range []struct {
		name, ref string
		files     map[string]string // below the home directory
		env       map[string]string // values below the home directory
		want      string            // user; "" is nobody
	}{
		{"nothing is anonymous", "r.example/x", nil, nil, ""},
		{"docker's file", "r.example/x", map[string]string{".docker/config.json": auth("r.example", "d")}, nil, "d"},
		{"podman's file", "r.example/x", map[string]string{".config/containers/auth.json": auth("r.example", "p")}, nil, "p"},
		{
			"podman's file beside a docker file that knows nothing", "r.example/x",
			map[string]string{".docker/config.json": "{}", ".config/containers/auth.json": auth("r.example", "p")},
			nil, "p",
		},
		{
			"docker's file before podman's", "r.example/x",
			map[string]string{".docker/config.json": auth("r.example", "d"), ".config/containers/auth.json": auth("r.example", "p")},
			nil, "d",
		},
		{
			"DOCKER_CONFIG instead of the home directory", "r.example/x",
			map[string]string{".docker/config.json": auth("r.example", "d"), "other/config.json": auth("r.example", "o")},
			map[string]string{"DOCKER_CONFIG": "other"},
			"o",
		},
		{
			"REGISTRY_AUTH_FILE instead of all", "r.example/x",
			map[string]string{".docker/config.json": auth("r.example", "d"), "f": auth("r.example", "f")},
			map[string]string{"REGISTRY_AUTH_FILE": "f"},
			"f",
		},
		{"XDG_RUNTIME_DIR", "r.example/x", map[string]string{"run/containers/auth.json": auth("r.example", "r")}, map[string]string{"XDG_RUNTIME_DIR": "run"}, "r"},
		{"the most special path", "r.example/a/b/c", map[string]string{".config/containers/auth.json": `{"auths":{
			"r.example":{"username":"host","password":"p"},"r.example/a/b":{"username":"deep","password":"p"}}}`}, nil, "deep"},
		{"docker hub's old key", "debian", map[string]string{".docker/config.json": auth("https://index.docker.io/v1/", "hub")}, nil, "hub"},
		{"docker hub's plain name", "debian", map[string]string{".config/containers/auth.json": auth("docker.io", "hub")}, nil, "hub"},
		{"another registry's are not sent", "r.example/x", map[string]string{".docker/config.json": auth("r.example.evil", "d")}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := home(t)
			for name, data := range tt.files {
				must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
				must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600))
			}
			for k, v := range tt.env {
				t.Setenv(k, filepath.Join(dir, v))
			}
			ref, err := ParseReference(tt.ref)
			must(t, err)
			a, err := findAuth(ref)
			must(t, err)
			got, err := a.Authorization()
			must(t, err)
			if got.Username != tt.want {
				t.Errorf("user is %q, want %q", got.Username, tt.want)
			}
		})
	}
}

// TestCredentialHelper: a helper program keeps the credentials, and the file does not.
func TestCredentialHelper(t *testing.T) {
	dir := home(t)
	reg, s := newRegistry(t), newStore(t)
	ref := reg.push(t, "private:1", build(t, nil, gzipLayer(t, "a", "x")))
	reg.misbehave(wantBasic)
	helper := `#!/bin/sh
case $1 in
store) cat > "$HOME/kept" ;;
get) cat "$HOME/kept" 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
erase) rm -f "$HOME/kept" ;;
list) echo '{}' ;;
esac
`
	must(t, os.MkdirAll(filepath.Join(dir, ".docker"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "docker-credential-test"), []byte(helper), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, ".docker/config.json"), []byte(`{"credsStore":"test"}`), 0o600))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if _, where, err := Login(context.Background(), reg.host, Credentials{"ann", "s3cret:x"}, true); err != nil || where != "docker-credential-test" {
		t.Fatalf("login: %q, %v", where, err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, ".docker/config.json"))
	if err != nil || strings.Contains(string(raw), `"auth"`) {
		t.Errorf("file is %s, %v", raw, err)
	}
	if _, err := s.Pull(context.Background(), ref, PullOptions{Platform: "linux/amd64"}); err != nil {
		t.Error(err)
	}
	if _, removed, err := Logout(reg.host); err != nil || !removed {
		t.Errorf("logout: %v, %v", removed, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kept")); err == nil {
		t.Error("the helper still has them")
	}
}

// TestTLS: a certificate that nobody vouches for is refused, unless it is not to be verified or its CA is laid down.
func TestTLS(t *testing.T) {
	dir := home(t)
	reg, s := newRegistry(t), newStore(t)
	reg.push(t, "test:1", build(t, nil, gzipLayer(t, "a", "x")))
	target, err := url.Parse("http://" + reg.host)
	must(t, err)
	srv := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(target))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	ctx := context.Background()

	_, err = s.Pull(ctx, host+"/test:1", PullOptions{Platform: "linux/amd64"})
	if err == nil || !strings.Contains(err.Error(), "x509") || !strings.Contains(hintOf(err), "certs.d/"+host) {
		t.Errorf("error is %v, hint %q", err, hintOf(err))
	}
	if _, err := s.Pull(ctx, host+"/test:1", PullOptions{Insecure: true, Platform: "linux/amd64"}); err != nil {
		t.Errorf("unverified: %v", err)
	}
	certs := filepath.Join(dir, ".config/containers/certs.d", host)
	must(t, os.MkdirAll(certs, 0o755))
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	must(t, os.WriteFile(filepath.Join(certs, "ca.crt"), ca, 0o644))
	if _, err := s.Pull(ctx, host+"/test:1", PullOptions{Platform: "linux/amd64"}); err != nil {
		t.Errorf("with the CA: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(certs, "ca.crt"), []byte("junk"), 0o644))
	if _, err := s.Pull(ctx, host+"/test:1", PullOptions{}); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("with a broken CA file: %v", err)
	}
}

// TestRedirectedBlobGetsNoPassword: blobs often come from another host, which has no business with the credentials.
func TestRedirectedBlobGetsNoPassword(t *testing.T) {
	home(t)
	reg, other, s := newRegistry(t), newRegistry(t), newStore(t)
	m := build(t, nil, gzipLayer(t, "a", "x"))
	ref := reg.push(t, "private:1", m)
	other.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("the other host was sent credentials")
		}
		_, err := w.Write(m.blobs[m.layers[0]])
		return err == nil
	})
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if wantBasic(w, r) {
			return true
		}
		if strings.HasSuffix(r.URL.Path, m.layers[0].String()) {
			http.Redirect(w, r, "http://"+other.host+"/elsewhere", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	if _, err := s.Pull(context.Background(), ref, PullOptions{Auth: &Credentials{"ann", "s3cret:x"}, Platform: "linux/amd64"}); err != nil {
		t.Error(err)
	}
	if other.count("GET", "elsewhere") != 1 {
		t.Error("the redirect was not followed")
	}
}
