package handlers

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
)

const (
	// refreshCookie is the cookie that holds the refresh token.
	refreshCookie = "refresh_token"
	// deviceCookie marks a browser in which an account has logged in before.
	deviceCookie    = "known_device"
	deviceCookieAge = 180 * 24 * time.Hour
)

// setRefreshCookie hands out a refresh token. maxAge is the time that its key
// in Redis has left.
func (a *api) setRefreshCookie(c *gin.Context, token string, maxAge time.Duration) {
	a.setCookie(c, refreshCookie, token, a.Settings.CookiePath, int(maxAge/time.Second))
}

// clearRefreshCookie takes the refresh token out of the browser.
func (a *api) clearRefreshCookie(c *gin.Context) {
	a.setCookie(c, refreshCookie, "", a.Settings.CookiePath, -1)
}

// expireStrays removes refresh cookies under other paths, which an earlier
// setting may have left. A browser sends them along and cannot say which is which.
func (a *api) expireStrays(c *gin.Context) {
	for _, path := range []string{"/", "/auth", "/auth/refresh"} {
		if path != a.Settings.CookiePath {
			a.setCookie(c, refreshCookie, "", path, -1)
		}
	}
}

func (a *api) setCookie(c *gin.Context, name, value, path string, maxAge int) {
	http.SetCookie(c.Writer, &http.Cookie{
		Name: name, Value: value, Path: path, Domain: a.Settings.CookieDomain, MaxAge: maxAge,
		HttpOnly: true, Secure: a.Settings.CookieSecure, SameSite: http.SameSiteLaxMode,
	})
}

// refreshCookies are the distinct values of the refresh cookie that came along.
func refreshCookies(r *http.Request) []string { return cookieValues(r, refreshCookie) }

// cookieValues are the distinct values of a cookie that came along.
func cookieValues(r *http.Request, name string) []string {
	var values []string
	seen := map[string]bool{}
	for _, cookie := range r.CookiesNamed(name) {
		if cookie.Value != "" && !seen[cookie.Value] {
			seen[cookie.Value] = true
			values = append(values, cookie.Value)
		}
	}
	return values
}

// A known device is a browser or another program in which the user has logged in before.
// It has a budget of failed logins of its own, so that strangers who use up the
// account's budget do not keep its owner out. Its token, in a cookie or where refresh
// tokens come in the body in device_token, proves nothing else:
// base64url( id 16 B | HMAC(key, id | username)[:16] ).
const deviceID = 16

// knownDevice returns the id of the device that the request comes from, or ""
// if it is not one that knows this username. inBody is the parameter device_token.
func (a *api) knownDevice(r *http.Request, username, inBody string) string {
	tokens := []string{inBody}
	for _, cookie := range r.CookiesNamed(deviceCookie) {
		tokens = append(tokens, cookie.Value)
	}
	for _, token := range tokens {
		raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
		if err == nil && len(raw) == 2*deviceID && a.madeDevice(raw, username) {
			return base64.RawURLEncoding.EncodeToString(raw[:deviceID])
		}
	}
	return ""
}

// newDevice makes the token of a new device of a user.
func (a *api) newDevice(username string) (string, error) {
	id := make([]byte, deviceID)
	if _, err := io.ReadFull(a.Rand, id); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(append(id, deviceMAC(a.Settings.DeviceKey, id, username)...)), nil
}

// setDeviceCookie makes the browser a known device of a user.
func (a *api) setDeviceCookie(c *gin.Context, token string) {
	// Its path is /: a password change is no endpoint of the refresh cookie's.
	a.setCookie(c, deviceCookie, token, "/", int(deviceCookieAge/time.Second))
}

// madeDevice reports whether a device's cookie was made here for a user.
func (a *api) madeDevice(raw []byte, username string) bool {
	for _, key := range append([][]byte{a.Settings.DeviceKey}, a.Settings.OlderDeviceKeys...) {
		if hmac.Equal(raw[deviceID:], deviceMAC(key, raw[:deviceID], username)) {
			return true
		}
	}
	return false
}

func deviceMAC(key, id []byte, username string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(id)
	mac.Write([]byte(username))
	return mac.Sum(nil)[:deviceID]
}
